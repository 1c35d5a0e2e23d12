//go:build !unix

package devmaria

import "context"

// Server is none here.
type Server struct{}

// Start returns ErrUnsupported.
func Start(context.Context, string, ...string) (*Server, error) { return nil, ErrUnsupported }

// Restart returns ErrUnsupported.
func (*Server) Restart(context.Context) error { return ErrUnsupported }

// Kill returns ErrUnsupported.
func (*Server) Kill() error { return ErrUnsupported }

// Stop returns ErrUnsupported.
func (*Server) Stop(context.Context) error { return ErrUnsupported }

// Dir is empty.
func (*Server) Dir() string { return "" }

// DSN is empty.
func (*Server) DSN(string) string { return "" }

// Socket is empty.
func (*Server) Socket() string { return "" }

// URL is empty.
func (*Server) URL(string) string { return "" }

// Adopted is false.
func (*Server) Adopted() bool { return false }

// Done is nil.
func (*Server) Done() <-chan struct{} { return nil }
