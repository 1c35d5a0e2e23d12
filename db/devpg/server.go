package devpg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// Superuser is the name of the role that owns every private server.
const Superuser = "postgres"

// socketPort names the socket file of a server without TCP.
const socketPort = 5432

var (
	// ErrNoBinaries means that no PostgreSQL this package can use was found.
	// The message says what to install on this system.
	ErrNoBinaries = errors.New("devpg: no PostgreSQL 14 or newer found")

	// ErrVersion means that the binaries are of another major version than
	// the data directory, or older than 14.
	ErrVersion = errors.New("devpg: wrong version of PostgreSQL")

	// ErrUnreachable means that the user the server runs as cannot enter the
	// directory. It happens to root only.
	ErrUnreachable = errors.New("devpg: directory out of the server's reach")

	// ErrUnsupported means that private servers do not exist on this system.
	ErrUnsupported = errors.New("devpg: private servers are not supported on this system")
)

// StartError says that a server did not become ready.
type StartError struct {
	Dir string // of the server
	Log string // the last lines the server wrote while it started
	Err error  // how it ended, or why it was not waited for any longer
}

func (e *StartError) Error() string {
	return fmt.Sprintf("devpg: start server in %s: %v; end of its log:\n%s", e.Dir, e.Err, e.Log)
}

func (e *StartError) Unwrap() error { return e.Err }

// Server is a running private Postgres. It is safe for concurrent use.
type Server struct {
	config                  Config
	dir, dataDir, socketDir string

	binDir, version string
	password        string
	port            int  // of the socket, and of TCP
	tcp             bool // URL is to name the TCP port
	pid             int
	own             *postmaster // nil if adopted
}

// URL returns how to connect to database as the superuser: through the Unix
// socket, or through TCP if the configuration asked for that. It is good for
// as long as the server runs, and again when it is started again in the same
// directory without TCP.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", Path: "/" + database}
	if s.tcp {
		u.User = url.UserPassword(Superuser, s.password)
		u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
		u.RawQuery = "sslmode=disable"
		return u.String()
	}
	u.User = url.User(Superuser)
	u.RawQuery = url.Values{"host": {s.socketDir}, "port": {strconv.Itoa(s.port)}}.Encode()
	return u.String()
}

// Config returns what the server was started with, and on which port. It starts
// the same server again, after Stop or Kill.
func (s *Server) Config() Config {
	cfg := s.config
	if s.tcp {
		cfg.Port = s.port
	}
	return cfg
}

// Dir returns the directory of the server.
func (s *Server) Dir() string { return s.dir }

// DataDir returns the data directory. It lies in Dir.
func (s *Server) DataDir() string { return s.dataDir }

// SocketDir returns the directory of the socket. It lies in Dir, or in /tmp where
// that is too long a path for a socket.
func (s *Server) SocketDir() string { return s.socketDir }

// BinDir returns the directory of initdb and postgres. Other programs, psql
// for one, may lie there too but need not.
func (s *Server) BinDir() string { return s.binDir }

// Version returns the version of the server, such as "15.13".
func (s *Server) Version() string { return s.version }

// PID returns the process id of the postmaster.
func (s *Server) PID() int { return s.pid }

// Adopted reports that another process, or an earlier Start of this one,
// started the server and owns it.
func (s *Server) Adopted() bool { return s.own == nil }

// Done returns a channel that is closed when the server has ended, for
// whatever reason. For an adopted server it is nil: its end shows in the
// connections only.
func (s *Server) Done() <-chan struct{} {
	if s.own == nil {
		return nil
	}
	return s.own.done
}

// ping connects, asks for the version, and leaves.
func (s *Server) ping(ctx context.Context) (version string, err error) {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.PgConn().ParameterStatus("server_version"), conn.Ping(ctx)
}
