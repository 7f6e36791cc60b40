package image

import (
	"encoding/json"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"machine/agent/fault"
)

// TestApplyChanges: what Debian's dockerd makes of the same instructions.
func TestApplyChanges(t *testing.T) {
	for _, c := range []struct {
		changes []string
		want    string
	}{
		{[]string{`CMD a`}, `{"Cmd":["/bin/sh","-c","a"]}`},
		{[]string{`cmd ["a","b"]`}, `{"Cmd":["a","b"]}`},
		{[]string{`CMD ["x"]`, `ENTRYPOINT e f`}, `{"Entrypoint":["/bin/sh","-c","e f"],"Cmd":["x"]}`},
		{[]string{`ENTRYPOINT ["e"]`}, `{"Entrypoint":["e"]}`},
		{[]string{`CMD`}, `{"Cmd":["/bin/sh","-c"]}`},
		{[]string{`CMD ['a']`}, `{"Cmd":["/bin/sh","-c","['a']"]}`},
		{[]string{`ENV A b c`, `LABEL l=1 "m n"="o p"`, `LABEL x y`}, `{"Env":["A=b c"],"Labels":{"l":"1","m n":"o p","x":"y"}}`},
		{[]string{`ENV A='b c' D=e\ f G="h\"i"`}, `{"Env":["A=b c","D=e f","G=h\"i"]}`},
		{[]string{"ENV A=b \\\n C=d", "# no", "ENV E=f\nENV A=g"}, `{"Env":["A=g","C=d","E=f"]}`},
		{[]string{`ENV A=b`, `ENV C=$A D=${A}x E=\$A F=$NONE G='$A' H="$A" I=${NONE:-z$A} J=${A:+w}`},
			`{"Env":["A=b","C=b","D=bx","E=$A","F=","G=$A","H=b","I=zb","J=w"]}`},
		{[]string{`ENV A=b`, `ENV A=c B=$A`}, `{"Env":["A=c","B=b"]}`},
		{[]string{`ENV A=b`, `WORKDIR /$A`, `USER $A`, `EXPOSE 80$NONE`, `VOLUME /v$A`, `LABEL k=$A`, `CMD echo $A`},
			`{"User":"b","ExposedPorts":{"80/tcp":{}},"Env":["A=b"],"Cmd":["/bin/sh","-c","echo $A"],"Volumes":{"/vb":{}},"WorkingDir":"/b","Labels":{"k":"b"}}`},
		{[]string{`EXPOSE 80 81/udp 90-91/tcp`}, `{"ExposedPorts":{"80/tcp":{},"81/udp":{},"90/tcp":{},"91/tcp":{}}}`},
		{[]string{`VOLUME /a /b`, `VOLUME ["/c d"]`, `VOLUME rel`}, `{"Volumes":{"/a":{},"/b":{},"/c d":{},"rel":{}}}`},
		{[]string{`WORKDIR a`, `WORKDIR b/../c`}, `{"WorkingDir":"/a/c"}`},
		{[]string{`WORKDIR /a/`}, `{"WorkingDir":"/a/"}`},
		{[]string{`USER me:you`, `STOPSIGNAL SIGUSR1`, `ONBUILD RUN x`}, `{"User":"me:you","StopSignal":"SIGUSR1","OnBuild":["RUN x"]}`},
		{[]string{`HEALTHCHECK --interval=5s --timeout=3s --start-period=1s --retries=2 CMD curl x`},
			`{"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Timeout":3000000000,"StartPeriod":1000000000,"Retries":2}}`},
		{[]string{`HEALTHCHECK CMD ["a","b"]`}, `{"Healthcheck":{"Test":["CMD","a","b"]}}`},
		{[]string{`HEALTHCHECK NONE`}, `{"Healthcheck":{"Test":["NONE"]}}`},
	} {
		var got dockerspec.DockerOCIImageConfig
		if err := ApplyChanges(&got, c.changes); err != nil {
			t.Errorf("%q: %v", c.changes, err)
			continue
		}
		if b, _ := json.Marshal(got); string(b) != c.want {
			t.Errorf("%q: got %s, want %s", c.changes, b, c.want)
		}
	}
}

func TestApplyChangesRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"":                                 "file with no instructions",
		"# comment":                        "file with no instructions",
		"RUN x":                            "run is not a valid change command",
		"SHELL []":                         "shell is not a valid change command",
		"MAINTAINER me":                    "maintainer is not a valid change command",
		"ENV":                              "ENV requires at least one argument",
		"ENV A":                            "ENV must have two arguments",
		"ENV =x":                           "ENV names can not be blank",
		"ENV A=b C":                        `Syntax error - can't find = in "C". Must be of the form: name=value`,
		"ENV A=${}":                        `failed to process "${}": syntax error: bad substitution`,
		`ENV A="b`:                         `failed to process "\"b": unexpected end of statement while looking for matching double-quote`,
		"USER":                             "USER requires exactly one argument",
		"EXPOSE x":                         "invalid containerPort: x",
		"EXPOSE 99999":                     "invalid containerPort: 99999",
		"EXPOSE 1/x":                       "invalid proto: x",
		`VOLUME [""]`:                      "VOLUME specified can not be an empty string",
		"ONBUILD FROM x":                   "FROM isn't allowed as an ONBUILD trigger",
		"ONBUILD ONBUILD RUN x":            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
		"STOPSIGNAL NOPE":                  "invalid signal: NOPE",
		"HEALTHCHECK":                      "HEALTHCHECK requires at least one argument",
		"HEALTHCHECK CMD":                  "Missing command after HEALTHCHECK CMD",
		"HEALTHCHECK FOO x":                `Unknown type "FOO" in HEALTHCHECK (try CMD)`,
		"HEALTHCHECK --x=1 CMD y":          "unknown flag: --x",
		"HEALTHCHECK --interval=1us CMD x": `Interval "interval" cannot be less than 1ms`,
	} {
		var c dockerspec.DockerOCIImageConfig
		if err := ApplyChanges(&c, []string{line}); !fault.Is(err, fault.Invalid) || err.Error() != want {
			t.Errorf("%q: %v, want %s", line, err, want)
		}
	}
}

// TestInherit: what a commit's own configuration leaves open is the
// container's.
func TestInherit(t *testing.T) {
	var have, c dockerspec.DockerOCIImageConfig
	have.Env, have.Cmd, have.User, have.Labels = []string{"A=1", "B=2"}, []string{"old"}, "u", map[string]string{"a": "1", "b": "2"}
	c = have
	if err := ApplyChanges(&c, []string{`ENTRYPOINT ["new"]`, "ENV A=3", "LABEL a=3"}); err != nil {
		t.Fatal(err)
	}
	Inherit(&c, &have)
	if b, _ := json.Marshal(c); string(b) != `{"User":"u","Env":["A=3","B=2"],"Entrypoint":["new"],"Labels":{"a":"3","b":"2"}}` {
		t.Errorf("got %s", b)
	}
	if have.Labels["a"] != "1" || have.Env[0] != "A=1" {
		t.Errorf("the container's own configuration was changed: %+v", have)
	}
	c = dockerspec.DockerOCIImageConfig{}
	c.Env = []string{"B=9"}
	Inherit(&c, &have)
	if b, _ := json.Marshal(c); string(b) != `{"User":"u","Env":["B=9","A=1"],"Cmd":["old"],"Labels":{"a":"1","b":"2"}}` {
		t.Errorf("got %s", b)
	}
}
