package main

import "syscall"

// fleetAttr puts a process into a group of its own, so that Ctrl-C reaches us and not it, and has the kernel kill it when we die.
func fleetAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
