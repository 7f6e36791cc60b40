#!/bin/sh
# demo.sh [clean]: from a clean clone to a container that answers on its
# published port, through the docker client, on a machine made of namespaces.
# Needs root, for the namespaces. "clean" takes the machine away again.
set -eu
cd "$(dirname "$0")/.."
name=${DEMO_MACHINE:-demo}
say() { printf '\n== %s\n' "$*"; }

if [ "${1:-}" = clean ]; then
	if [ -x bin/machine ]; then bin/machine rm -y "$name" || true; fi
	exit 0
fi

say "What this computer lacks is installed from its package sources"
scripts/dev/needs.sh
command -v docker >/dev/null || { echo "there is no docker client in the package sources" >&2; exit 1; }

say "Build"
make -s build ARCHS="$(go env GOARCH)" # the agent for this computer alone: half the time

say "machine create -d local $name"
if bin/machine status "$name" >/dev/null 2>&1; then
	bin/machine start "$name" 2>/dev/null || true
else
	bin/machine create -d local "$name"
fi
bin/machine ls

say "eval \$(machine env $name): the ordinary docker client talks to it"
eval "$(bin/machine env --shell bash "$name")"
docker version --format 'client {{.Client.Version}}, server {{.Server.Version}} (API {{.Server.APIVersion}})'

say "An image made from this computer's static busybox"
scripts/busybox-image.sh | docker import --change 'CMD ["sh"]' --change 'ENV PATH=/bin' - busybox

say "docker run -d -p 8080:80 busybox httpd"
docker rm -f web >/dev/null 2>&1 || true
docker run -d --name web -p 8080:80 busybox sh -c 'echo "hello from $HOSTNAME" >/tmp/index.html; exec httpd -f -h /tmp' >/dev/null
docker ps

say "curl http://$(bin/machine ip "$name"):8080/"
for _ in 1 2 3 4 5 6 7 8 9 10; do
	if curl -sf -m 5 "http://$(bin/machine ip "$name"):8080/"; then
		say "Done. Next: eval \$(bin/machine env $name); make demo-clean takes it all away."
		exit 0
	fi
	sleep 0.3
done
echo "the container does not answer" >&2
docker logs web >&2
exit 1
