package main

import (
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/wire"
)

func (s *shim) openCgroup() error {
	for _, path := range s.prog.CgroupProcs {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return wire.Fail("open cgroup "+path, err)
		}
		s.tasks = append(s.tasks, fd)
	}
	if s.prog.OOMFile != "" {
		s.oom, _ = unix.Open(s.prog.OOMFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	return nil
}

// innerCgroup opens the list of processes of the cgroup that the container's
// first process is in, where an exec cannot enter the container's own: one of
// version 2 that hands controllers down to cgroups below it, as systemd and
// engines in containers make them, takes no processes (cgroups(7), "no internal
// processes"). It is -1 when the container's own will do. The caller closes it.
func (s *shim) innerCgroup(init int) int {
	if len(s.prog.CgroupProcs) != 1 || !strings.HasSuffix(s.prog.CgroupProcs[0], "/cgroup.procs") {
		return -1
	}
	own := strings.TrimSuffix(s.prog.CgroupProcs[0], "/cgroup.procs")
	if strings.TrimSpace(slurp(own+"/cgroup.subtree_control")) == "" {
		return -1
	}
	for line := range strings.Lines(slurp("/proc/" + itoa(init) + "/cgroup")) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		// It is as seen from the root of our cgroup namespace, which is what is
		// mounted; one that the container left for is none of its own.
		dir := "/sys/fs/cgroup" + path
		if !strings.HasPrefix(dir, own+"/") {
			return -1
		}
		fd, err := unix.Open(dir+"/cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1
		}
		return fd
	}
	return -1
}

// slurp reads a small file of the kernel's; empty when it cannot.
func slurp(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var b [8192]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}
