// Package shim is the agent's handle on containers' processes: each container
// has a shim process of its own, which outlives the agent.
//
// # On disk
//
// A task's directory holds
//
//	meta       what the agent must know of it again (package wire)
//	shim.sock  the shim's socket, SOCK_SEQPACKET, mode 0600
//	exit       how the container ended, written by the shim before it tells
//	shim.err   what the shim says when it dies of a fault of its own
//
// After an agent restart a task is one of: a shim that answers on its socket;
// an exit record; or lost, when somebody killed the shim, in which case what
// is left of the container is killed, too.
//
// # Streams
//
// The descriptors of an attach travel to the shim over its socket: the agent
// reads and writes plain pipes. An exec's pipes are handed to the process
// itself, and its terminal to the agent.
package shim
