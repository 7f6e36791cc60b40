# Puts files in place and (re)starts the agent's service. Before this text come
# assignments: INIT, AGENT_TMP (or empty), AGENT, RESTART, RELOAD, SHIM, WANT,
# ARGS (the agent's new arguments, quoted, or empty);
# and the function files(), which calls put NAME MODE <<here-document.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
umask 077
put() { # NAME MODE: standard input becomes the file, all of it or nothing
	d=${1%/*}
	[ -d "$d" ] || { mkdir -p "$d"; chmod 755 "$d"; }
	cat >"$1.machine-new"
	chmod "$2" "$1.machine-new"
	sync "$1.machine-new" 2>/dev/null || :
	mv -f "$1.machine-new" "$1"
}
# An agent tells at once what it could not start with; one that cannot is not
# asked.
validate() {
	[ -n "$ARGS" ] || return 0
	case $("$1" version --json 2>/dev/null) in *'"Flags":"validate'*) ;; *) return 0 ;; esac
	said=$(eval "\"\$1\" --validate $ARGS" 2>&1) && return 0
	echo "$said" >&2
	return 1
}
if [ -n "$AGENT_TMP" ]; then
	mkdir -p /usr/local/bin
	t=$AGENT.machine-new
	if [ "$AGENT_TMP" != "$t" ]; then cp "$AGENT_TMP" "$t" && rm -f "$AGENT_TMP"; fi
	got=$(sha256sum "$t"); got=${got%% *}
	[ "$got" = "$WANT" ] || { rm -f "$t"; echo "the agent was damaged on its way: checksum $got, not $WANT" >&2; exit 71; }
	chown 0:0 "$t" 2>/dev/null || :
	chmod 755 "$t"
	"$t" version --json >/dev/null || { rm -f "$t"; echo "the agent does not run on this host" >&2; exit 72; }
	validate "$t" || { rm -f "$t"; exit 73; }
	# What runs now is kept until the new one has answered.
	if [ -e "$AGENT" ]; then ln -f "$AGENT" "$AGENT.machine-old" 2>/dev/null || cp -p "$AGENT" "$AGENT.machine-old"; fi
	mv -f "$t" "$AGENT"
fi
if ! "$AGENT" version --json >/dev/null 2>&1; then
	"$AGENT" version --json >/dev/null || { echo "the agent does not run on this host" >&2; exit 72; }
fi
[ -n "$AGENT_TMP" ] || validate "$AGENT" || exit 73
files
if [ "$SHIM" = yes ] && ! command -v docker >/dev/null 2>&1; then ln -sf "$AGENT" /usr/local/bin/docker; fi
case "$INIT" in
systemd)
	systemctl daemon-reload
	systemctl enable machine-agent.service >/dev/null 2>&1 || systemctl enable machine-agent.service
	if [ "$RESTART" = yes ]; then systemctl restart machine-agent.service
	elif [ "$RELOAD" = yes ]; then systemctl reload-or-restart machine-agent.service
	else systemctl start machine-agent.service; fi
	;;
openrc)
	rc-update add machine-agent default >/dev/null
	if ! "$AGENT" supervise --status >/dev/null 2>&1; then
		# Killed, it is still started in OpenRC's books.
		rc-service machine-agent zap >/dev/null 2>&1 || :
		rc-service machine-agent start
	elif [ "$RESTART" = yes ]; then rc-service machine-agent restart
	elif [ "$RELOAD" = yes ]; then rc-service machine-agent reload; fi
	;;
*)
	if [ "$INIT" = sysvinit ]; then
		if command -v update-rc.d >/dev/null 2>&1; then update-rc.d machine-agent defaults >/dev/null 2>&1 || :
		elif command -v chkconfig >/dev/null 2>&1; then chkconfig --add machine-agent || :; fi
	fi
	if "$AGENT" supervise --status >/dev/null 2>&1; then
		if [ "$RESTART" = yes ]; then "$AGENT" supervise --restart
		elif [ "$RELOAD" = yes ]; then "$AGENT" supervise --reload; fi
	else
		"$AGENT" supervise --args-file /etc/machine-agent/args </dev/null >/dev/null
	fi
	;;
esac
echo installed=yes
