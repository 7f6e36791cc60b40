// Package agent wires the engine of one host together: it constructs the
// parts, brings back what ran, serves, and stops. It has no behaviour of its
// own; each part lives in a package below and knows the others only by small
// interfaces.
//
// # Flows
//
// docker run -p 80:80 IMAGE:
//
//	api/containers.go create   -> container.Create
//	    image.Get                 config and layer chain
//	    layer/overlay.Create      the writable layer
//	    volume.Use                named and anonymous volumes, filled from the image
//	    state.Put                 the record, durable before the answer
//	api/attach.go attach       -> container.Attach      101, waits for the run
//	api/containers.go wait     -> container.Wait        headers at once
//	api/containers.go start    -> container.Start
//	    network.NewSandbox        a network namespace, visible under netns/
//	    shim.Create            ║  network.Attach         both at the same time
//	      runtime: the bundle     address, veth straight into the namespace,
//	      as a compact program    published port as an element of an nft map
//	    hosts, resolv.conf
//	    state.Put                 "running", before the act
//	    task.Start                the init executes the program
//
// The end of a container: the shim reaps it, writes its exit record, tells
// the agent. container/exit.go (the monitor) removes the sandbox, the task,
// books the state, publishes die, wakes waiters, applies the restart policy.
//
// docker pull: image.Pull -> registry (token, manifest for the platform) ->
// blob (verified, resumed) -> layer (decompressed and staged while it
// arrives) -> image: the name is saved last.
//
// Agent restart: records are opened -> container.Survivors asks each shim ->
// network.Restore keeps the endpoints of the living, frees all others and
// sets the packet filter -> container.Restore re-attaches, books ends, cleans
// up, applies restart policies -> the API listens last.
//
// With --userns-remap NewSandbox makes the network namespace in a new user
// namespace, which owns it and which the container then joins. The layers hold
// an image's own ids for all: a container sees them through mounts with mapped
// ids. So does the agent through a running container's root, and translates
// (cp, export); a stopped container's root is mounted as it is on disk. Volumes
// hold the host's ids, as with dockerd.
//
// # Where things are
//
//	DATA-ROOT/overlay2          layers: diff, work, a short name each
//	DATA-ROOT/image             image records, names and small blobs
//	DATA-ROOT/containers/ID     hosts, hostname, resolv.conf, logs
//	DATA-ROOT/records           one JSON file per container, atomic and durable
//	DATA-ROOT/network, volumes  records and data
//	DATA-ROOT/broken            layers that could not be used: see agent/check
//	EXEC-ROOT/tasks/ID          a shim's socket and exit record
//	EXEC-ROOT/netns             network namespaces, as "ip netns" wants them
package agent
