//go:build !unix

package devpg

import "context"

// postmaster has no process behind it here.
type postmaster struct{ done chan struct{} }

// Start returns ErrUnsupported.
func Start(context.Context, Config) (*Server, error) { return nil, ErrUnsupported }

// Stop returns ErrUnsupported.
func (s *Server) Stop(context.Context) error { return ErrUnsupported }

// Kill returns ErrUnsupported.
func (s *Server) Kill() error { return ErrUnsupported }

// Keep returns ErrUnsupported.
func (s *Server) Keep() error { return ErrUnsupported }

// Remove returns ErrUnsupported.
func Remove(context.Context, string) error { return ErrUnsupported }

// RemoveUnowned returns ErrUnsupported.
func RemoveUnowned(context.Context, string) (bool, error) { return false, ErrUnsupported }
