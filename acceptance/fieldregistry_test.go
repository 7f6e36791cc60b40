package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"machine/acceptance/engine"
)

// fieldRegistry is a private registry as the field runs it: in a container on
// one machine, plain for a machine that was told so and that has it for its
// mirror, with mutual TLS by certs.d for another one.
const fieldRegistry = `
export PATH=$PWD/bin:$PATH
on() { m=$1; shift; (eval "$(machine env --shell bash $m)"; docker "$@"); }
fails() { text=$1; shift; if "$@" >$T/out 2>&1; then echo "succeeded: $*"; exit 1; fi; grep -q "$text" $T/out || { cat $T/out; exit 1; }; }
says() { text=$1; shift; "$@" >$T/out 2>&1 || { cat $T/out; exit 1; }; grep -q -- "$text" $T/out || { cat $T/out; exit 1; }; }
until_ready() { for i in $(seq 300); do (exec 3<>/dev/tcp/$1/$2) 2>/dev/null && return; sleep 0.02; done; exit 1; }

machine create -d local hub
hub=$(machine ip hub)
machine create -d local --engine-insecure-registry http://$hub:5000 --engine-env HTTPS_PROXY=http://me:secret@127.0.0.1:1 --engine-registry-mirror http://$hub:5000 \
	--engine-opt max-concurrent-downloads=2 --engine-opt debug plain &
machine create -d local tls
wait
says "http://$hub:5000/" on plain info
says "^  $hub:5000" on plain info
says "Debug Mode: true" on plain info
says "HTTPS Proxy: http://xxxxx:xxxxx@127.0.0.1:1" on plain info
fails "registry mirror .*mirror:5000.* should be http" machine create -d local --engine-registry-mirror mirror:5000 bad
machine rm -y -f bad
scripts/busybox-image.sh | on hub import --change 'ENV PATH=/bin' - busybox
mkdir -p $T/img/bin $T/img/tmp && cd $T/img
cp /bin/busybox bin/busybox; ln -s busybox bin/sh
cp /usr/bin/docker-registry bin/registry
for l in $(ldd bin/registry | grep -o '/[^ ]*'); do mkdir -p .$(dirname $l); cp $l .$l; done
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /data}}\nhttp: {addr: ":5000"}\n' >config.yml
tar -cf - . | on hub import -c 'ENTRYPOINT ["/bin/registry"]' -c 'CMD ["serve","/config.yml"]' - registry:2
on hub run -d -p 5000:5000 --restart always -v data:/data --name registry registry:2
until_ready $hub 5000
on hub tag busybox localhost:5000/library/box:1
on hub push localhost:5000/library/box:1
on plain pull $hub:5000/library/box:1
on plain rmi $hub:5000/library/box:1
says "Downloaded newer image for box:1" on plain pull box:1 # by the mirror
says hello on plain run --rm --network none box:1 echo hello

# Another agent, and another machine after a stop: the registry is there.
pid=$(on hub inspect -f '{{.State.Pid}}' registry)
machine upgrade hub
[ $pid = $(on hub inspect -f '{{.State.Pid}}' registry) ]
on plain rmi box:1
on plain pull box:1
machine restart hub
until_ready $hub 5000
on plain rmi box:1
on plain pull box:1

# With TLS, and a client that must say who it is. Nothing is restarted.
mkdir $T/certs && cd $T/certs
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 10 -subj /CN=ca -keyout ca.key -out ca.crt 2>/dev/null
for who in server client; do
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$who -keyout $who.key -out $who.csr 2>/dev/null
	printf "subjectAltName=IP:$hub\nextendedKeyUsage=serverAuth,clientAuth\n" >ext
	openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 10 -extfile ext -out $who.cert 2>/dev/null
done
machine scp -r $T/certs hub:/srv/certs
on hub run -d -p 5443:5000 -v data:/data -v /srv/certs:/certs:ro -e REGISTRY_HTTP_TLS_CERTIFICATE=/certs/server.cert \
	-e REGISTRY_HTTP_TLS_KEY=/certs/server.key -e REGISTRY_HTTP_TLS_CLIENTCAS='[/certs/ca.crt]' registry:2
until_ready $hub 5443
dir=/etc/docker/certs.d/$hub:5443
fails "certificate signed by unknown authority" on tls pull $hub:5443/library/box:1
machine ssh tls -- mkdir -p $dir
machine scp ca.crt tls:$dir/ca.crt
fails "remote error: tls: " on tls pull $hub:5443/library/box:1
machine scp client.cert tls:$dir/client.cert
fails "client.key" on tls pull $hub:5443/library/box:1
machine scp client.key tls:$dir/client.key
says "Downloaded newer image" on tls pull $hub:5443/library/box:1
on tls tag $hub:5443/library/box:1 $hub:5443/other/box:2
says "Mounted from library/box" on tls push $hub:5443/other/box:2
machine rm -y -f hub plain tls
`

// TestFieldRegistry runs it.
func TestFieldRegistry(t *testing.T) {
	engine.NeedRoot(t)
	engine.Binary(t, "machine")
	for _, p := range []string{"openssl", "/usr/bin/docker-registry"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "field-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// A network namespace of its own: other tests make machines, too.
	c := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", `ip link set lo up; mount -t tmpfs tmpfs /run; exec bash -euxo pipefail -c "$0"`, fieldRegistry)
	c.Dir = engine.Root()
	c.Env = append(os.Environ(), "T="+dir, "MACHINE_STORAGE_PATH="+filepath.Join(dir, "store"), "DOCKER_CONFIG="+filepath.Join(dir, "client"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("it stops: %v\n%s", err, out)
	}
}
