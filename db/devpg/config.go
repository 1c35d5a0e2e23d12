package devpg

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
)

// Config says which server to start. Only Dir is required.
type Config struct {
	// Dir is the directory of the server: its data, socket, lock and log lie
	// in it. It is made if it does not exist. Required; see [DefaultDir].
	Dir string

	// BinDir is a directory that holds initdb and postgres. Empty means to
	// look for one: in PAWL_PG_BIN, in CacheDir, where the distribution,
	// Homebrew and Postgres.app install, in PATH, and at last as a package
	// fetched by npm. The newest version wins, of those equal to the major
	// version of the data if there is data already.
	BinDir string

	// CacheDir is where fetched binaries are kept. Empty means the user's
	// cache directory, for root /var/cache/pawl.
	CacheDir string

	// Durable leaves fsync, full_page_writes and synchronous_commit on.
	// Without it all three are off: quicker, but a killed server may have
	// lost commits and a crashed machine the database.
	Durable bool

	// Settings are further settings of postgresql.conf by name. They win over
	// the defaults of this package, but not over where it listens.
	Settings map[string]string

	// TCP makes the server listen on 127.0.0.1 too, with a password, and
	// makes URL name that address. A server that is adopted listens where
	// its owner told it to.
	TCP bool

	// Port is the TCP port. 0 means any free one. It needs TCP.
	Port int

	// Template is the data directory of a server that was stopped cleanly.
	// It is copied where otherwise initdb would run. Empty means initdb.
	Template string

	// Temporary removes Dir when the server stops, and also when the process
	// that started it dies (see [Server.Keep]).
	Temporary bool

	// Logger tells of what was found, started and stopped. nil discards.
	Logger *slog.Logger
}

// settingName is what a setting may be called, extension prefix included.
var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// ownSettings are decided by this package alone, since URL relies on them.
var ownSettings = []string{
	"listen_addresses", "port", "unix_socket_directories", "data_directory", "hba_file", "external_pid_file",
}

// validate reports all faults at once.
func (c Config) validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("Dir is required"))
	}
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("Port %d is not a port", c.Port))
	}
	if c.Port != 0 && !c.TCP {
		errs = append(errs, errors.New("Port needs TCP"))
	}
	for name := range c.Settings {
		if !settingName.MatchString(name) {
			errs = append(errs, fmt.Errorf("%q is not the name of a setting", name))
		}
	}
	for _, name := range ownSettings {
		if _, ok := c.Settings[name]; ok {
			errs = append(errs, fmt.Errorf("setting %s is not for the caller to choose", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("devpg: config: %w", err)
	}
	return nil
}

// withDefaults returns c with its empty fields filled in and Dir absolute.
func (c Config) withDefaults() (Config, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, err
	}
	c.Dir = dir
	if c.CacheDir == "" {
		c.CacheDir = defaultCacheDir()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// settings returns the defaults of this package with the caller's over them.
func (c Config) settings() map[string]string {
	s := map[string]string{
		"max_connections":           "200",
		"max_prepared_transactions": "200",
		"logging_collector":         "off",
		"log_destination":           "stderr",
	}
	if c.Durable {
		s["shared_buffers"] = "256MB"
		s["max_wal_size"] = "4GB"
	} else {
		s["fsync"] = "off"
		s["full_page_writes"] = "off"
		s["synchronous_commit"] = "off"
		// Shared memory then lies in the data directory and goes with it,
		// also when the server was killed.
		s["dynamic_shared_memory_type"] = "mmap"
	}
	maps.Copy(s, c.Settings)
	return s
}
