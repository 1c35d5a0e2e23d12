//go:build unix

package devmaria

// Unwatch has nobody kill the server when this process dies.
func (s *Server) Unwatch() { s.dog.dismiss(false) }
