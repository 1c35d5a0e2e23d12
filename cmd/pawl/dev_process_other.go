//go:build !unix

package main

import "syscall"

// fleetAttr is the default: a process ends with its standard input when we die.
func fleetAttr() *syscall.SysProcAttr { return nil }
