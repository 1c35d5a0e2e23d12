//go:build unix && !linux

package main

import "syscall"

// dieWithParent exists on Linux only.
func dieWithParent(*syscall.SysProcAttr) {}
