package main

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machine/agent/runtime/stage"
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
		var err error
		if s.oom, err = unix.Open(s.prog.OOMFile, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			s.oom = -1
		} else {
			s.watchOOM()
		}
	}
	return nil
}

// watchOOM has the agent hear of each kill for memory, also of one that the
// container survives. Version 1 tells by an eventfd (memory.txt of the kernel's
// documentation, section 9), version 2 by the file itself (cgroup-v2.rst). Where
// the kernel does not, the count is looked at when the container ends.
func (s *shim) watchOOM() {
	s.oomFD = s.oom
	events := uint32(unix.EPOLLPRI)
	if dir, v1 := strings.CutSuffix(s.prog.OOMFile, "/memory.oom_control"); v1 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return
		}
		if stage.WriteFile(dir+"/cgroup.event_control", itoa(fd)+" "+itoa(s.oom)) != nil {
			unix.Close(fd)
			return
		}
		s.oomFD, events = fd, unix.EPOLLIN
	}
	s.watch(s.oomFD, events, func(uint32) {
		if s.oomFD != s.oom {
			unix.Read(s.oomFD, s.buf[:8])
			s.oomLooks = 50 // version 1 tells of the want, and counts the kill after it
		}
		s.lookOOM()
	})
}

// lookOOM tells of kills that were not told of. The loop calls it every 10 ms
// while oomLooks says so.
func (s *shim) lookOOM() {
	s.oomLooks = max(0, s.oomLooks-1)
	if s.oom < 0 {
		return
	}
	n, err := s.oomKills()
	if err != nil {
		s.unwatchOOM()
	} else if n > s.oomSeen {
		s.oomSeen, s.oomLooks = n, 0
		s.broadcast(&wire.Message{Kind: wire.MsgOOM})
	}
}

// unwatchOOM ends that: with the group, its file is ready for ever.
func (s *shim) unwatchOOM() {
	if s.oom < 0 {
		return
	}
	s.forget(s.oomFD)
	if s.oomFD != s.oom {
		unix.Close(s.oom)
	}
	s.oom, s.oomFD, s.oomLooks = -1, -1, 0
}

// oomKills is how often the kernel killed in the container for memory.
func (s *shim) oomKills() (int, error) {
	var b [1024]byte
	n, err := unix.Pread(s.oom, b[:], 0)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b[:n])) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, nil
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
