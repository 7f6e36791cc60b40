// Package vm tests the engine on what the computer of developers and CI may
// lack: cgroup v2 alone, ipvlan, 802.1q, AppArmor. "make vm" runs it, and the
// kernel's other tests, in a virtual machine with Debian's kernel. They have the
// build tag vm, so that they are not skipped elsewhere and counted as tests.
package vm
