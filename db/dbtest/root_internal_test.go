package dbtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What a run of a process that lives has left without an owner, as a server that was killed and is not started again yet, stays; that of a dead one goes.
func TestSweep_lives(t *testing.T) {
	t.Parallel()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Skipf("no process to be had that has ended: %v", err)
	}
	base := t.TempDir()
	ours, theirs := filepath.Join(base, fmt.Sprintf("run-%d-a", os.Getpid())), filepath.Join(base, fmt.Sprintf("run-%d-b", dead.ProcessState.Pid()))
	for _, dir := range []string{ours, theirs} {
		if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sweep(t.Context(), base)
	if _, err := os.Stat(ours); err != nil {
		t.Errorf("ours: %v", err)
	}
	if _, err := os.Stat(theirs); !os.IsNotExist(err) {
		t.Errorf("that of a process that has ended: got %v, want it removed", err)
	}
}
