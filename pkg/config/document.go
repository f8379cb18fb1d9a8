package config

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Document writes a Markdown section with a table of the structs' settings, in the order of their fields. The same
// structs always give the same bytes. A setting that several structs have is written once.
func Document(w io.Writer, title string, structs ...any) error {
	settings, err := Settings(structs...)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "## %s\n\n", title)
	b.WriteString("| variable | flag | default | meaning | allowed |\n|---|---|---|---|---|\n")
	seen := make(map[string]bool)
	for _, s := range settings {
		if seen[s.Name] {
			continue
		}
		seen[s.Name] = true
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", nameCell(s), flagCell(s), code(s.Default), cell(s.Help), cell(s.allowed()))
	}
	_, err = w.Write(b.Bytes())
	return err
}

func nameCell(s Setting) string {
	if s.Secret {
		return code(s.Name) + " or " + code(s.Name+fileSuffix)
	}
	return code(s.Name)
}

func flagCell(s Setting) string {
	if s.Flag == "" {
		return ""
	}
	return code("--" + s.Flag)
}

// allowed joins form and check, and marks secrets.
func (s Setting) allowed() string {
	parts := make([]string, 0, 3)
	for _, p := range []string{s.Form, s.Check} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if s.Secret {
		parts = append(parts, "secret")
	}
	return strings.Join(parts, "; ")
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + cell(s) + "`"
}

// cell keeps a text inside its cell of the table.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\r\n", " ", "\n", " ").Replace(s)
}
