package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// typedPackage is a package with its types, which decide what a mutant may look like.
type typedPackage struct {
	files *token.FileSet
	trees map[string]*ast.File // by file name
	info  *types.Info
	types *types.Package
}

// listedPackage is a package as `go list` describes it.
type listedPackage struct {
	ImportPath string
	Export     string // the file with its compiled types
	GoFiles    []string
}

// loadPackage parses and type-checks the package in a directory. Types of imported packages come from the build cache.
func loadPackage(ctx context.Context, dir string) (*typedPackage, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-export", "-deps",
		"-json=ImportPath,Export,GoFiles", "./"+dir)
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	exports := map[string]string{}
	var own listedPackage // the last one: dependencies come first
	for decoder := json.NewDecoder(bytes.NewReader(raw)); ; {
		if err := decoder.Decode(&own); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
		exports[own.ImportPath] = own.Export
	}
	p := &typedPackage{
		files: token.NewFileSet(), trees: map[string]*ast.File{},
		info: &types.Info{
			Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
		},
	}
	var all []*ast.File
	for _, name := range own.GoFiles {
		tree, err := parser.ParseFile(p.files, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", dir, err)
		}
		p.trees[name] = tree
		all = append(all, tree)
	}
	config := types.Config{Importer: importer.ForCompiler(p.files, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	if p.types, err = config.Check(own.ImportPath, p.files, all, p.info); err != nil {
		return nil, fmt.Errorf("check the types of %s: %w", dir, err)
	}
	return p, nil
}
