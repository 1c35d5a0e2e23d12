//go:build unix && !linux

package main

import "syscall"

// fleetAttr puts a process into a group of its own, so that Ctrl-C reaches us and not it. It ends with its standard input when we die.
func fleetAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
