package main

import "os/exec"

// ownGroup leaves the command as it is: there are no process groups to signal here, and only the command itself ends when its time is over.
func ownGroup(*exec.Cmd) {}

func endGroup(*exec.Cmd) {}

func ourGroup(*exec.Cmd) {}
