package gosrc

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"strings"
)

// Counts is what is counted in a file, and added up for a package.
type Counts struct {
	Lines   int `json:"lines"`
	Funcs   int `json:"funcs"`
	Methods int `json:"methods"`
	Types   int `json:"types"`
	Consts  int `json:"consts"` // names, as with variables
	Vars    int `json:"vars"`
	Imports int `json:"imports"`
}

// Decls is how many declarations there are of all kinds.
func (c Counts) Decls() int { return c.Funcs + c.Methods + c.Types + c.Consts + c.Vars }

func (c *Counts) add(d Counts) {
	c.Lines += d.Lines
	c.Funcs += d.Funcs
	c.Methods += d.Methods
	c.Types += d.Types
	c.Consts += d.Consts
	c.Vars += d.Vars
	c.Imports += d.Imports
}

// Source is what was found in one file.
type Source struct {
	Counts
	Imported []string // the import paths as they are written, in the order of the file
	Bad      bool     // it does not parse: only its lines were counted
}

// Package is the total of a directory, which nearly always is a package.
type Package struct {
	Counts
	Files    int `json:"files"`
	Bad      int `json:"bad"`      // of them do not parse
	Imported int `json:"imported"` // different import paths
}

// Totals holds the packages of a run by their directory, with slashes, below the root.
type Totals map[string]Package

// Sum adds up all packages. Its Imported is a sum as well: a path counts once for each package.
func (t Totals) Sum() Package {
	var sum Package
	for _, p := range t {
		sum.add(p.Counts)
		sum.Files += p.Files
		sum.Bad += p.Bad
		sum.Imported += p.Imported
	}
	return sum
}

// Count reads one file: its lines, its declarations outside functions, its imports.
func Count(text []byte) Source {
	var s Source
	s.Lines = bytes.Count(text, []byte{'\n'})
	if len(text) > 0 && text[len(text)-1] != '\n' {
		s.Lines++
	}
	file, err := parser.ParseFile(token.NewFileSet(), "", text, parser.SkipObjectResolution)
	if err != nil {
		s.Bad = true
		return s
	}
	for _, spec := range file.Imports {
		// As it is written: in testdata there are paths such as "a\xff", which no text column takes once unquoted.
		s.Imported = append(s.Imported, strings.Trim(spec.Path.Value, "\"`"))
	}
	s.Imports = len(s.Imported)
	for _, decl := range file.Decls {
		s.declared(decl)
	}
	return s
}

func (s *Source) declared(decl ast.Decl) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			s.Funcs++
		} else {
			s.Methods++
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				s.Types++
			case *ast.ValueSpec:
				if d.Tok == token.CONST {
					s.Consts += len(spec.Names)
				} else {
					s.Vars += len(spec.Names)
				}
			}
		}
	}
}

// dirOf is the package that a file counts for.
func dirOf(name string) string { return path.Dir(name) }
