//go:build unix

package devpg

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// needed says which version is looked for.
func needed(want int) string {
	if want != 0 {
		return fmt.Sprintf("the data directory needs PostgreSQL %d", want)
	}
	return fmt.Sprintf("PostgreSQL %d or newer is needed", majorMin)
}

// advice says what a person can do about missing binaries on this system.
func advice(want int) string {
	osRelease, _ := os.ReadFile("/etc/os-release") // not there: the general advice
	return adviceFor(runtime.GOOS, string(osRelease), want)
}

func adviceFor(goos, osRelease string, want int) string {
	return installAdvice(goos, osRelease, want) +
		", or set " + binEnv + " to the directory that holds initdb and postgres" +
		", or use a server you have: set PAWL_DATABASE_URL (tests: PAWL_TEST_DATABASE_URL)"
}

func installAdvice(goos, osRelease string, want int) string {
	suffix := ""
	if want != 0 {
		suffix = fmt.Sprint(want)
	}
	if goos == "darwin" {
		if suffix == "" {
			suffix = fmt.Sprint(pinnedMajor)
		}
		return "brew install postgresql@" + suffix
	}
	for _, id := range osIDs(osRelease) {
		switch id {
		case "debian", "ubuntu":
			if suffix != "" {
				suffix = "-" + suffix
			}
			return "apt-get install postgresql" + suffix
		case "fedora", "rhel", "centos":
			return "dnf install postgresql" + suffix + "-server"
		case "suse", "opensuse":
			return "zypper install postgresql" + suffix + "-server"
		case "alpine":
			return "apk add postgresql" + suffix
		case "arch":
			return "pacman -S postgresql"
		}
	}
	return strings.TrimSpace("install the server package of PostgreSQL "+suffix) + " with your system's package manager"
}

// osIDs returns what a system calls itself, then what it is like.
func osIDs(osRelease string) []string {
	var id, like []string
	for lines := bufio.NewScanner(strings.NewReader(osRelease)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		value = strings.Trim(value, `"'`)
		switch name {
		case "ID":
			id = strings.Fields(value)
		case "ID_LIKE":
			like = strings.Fields(value)
		}
	}
	return append(id, like...)
}
