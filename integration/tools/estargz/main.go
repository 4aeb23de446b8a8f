// Command estargz verifies a layer in the eSTARGZ form with the reference implementation: the table of contents against its
// digest, and each piece of each file against the table. Prints how many files and pieces it saw.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
)

func main() {
	if len(os.Args) != 3 {
		fail("usage: estargz FILE TOC-DIGEST")
	}
	files, pieces, err := verify(os.Args[1], digest.Digest(os.Args[2]))
	if err != nil {
		fail(err.Error())
	}
	fmt.Printf("%d files, %d pieces\n", files, pieces)
}

func fail(reason string) {
	fmt.Fprintln(os.Stderr, reason)
	os.Exit(1)
}

func verify(path string, table digest.Digest) (files, pieces int, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return 0, 0, err
	}
	reader, err := estargz.Open(io.NewSectionReader(file, 0, stat.Size()))
	if err != nil {
		return 0, 0, err
	}
	verifier, err := reader.VerifyTOC(table)
	if err != nil {
		return 0, 0, err
	}
	root, ok := reader.Lookup("")
	if !ok {
		return 0, 0, fmt.Errorf("no root directory")
	}
	return walk(reader, verifier, root, map[*estargz.TOCEntry]bool{})
}

// walk counts a file of several names once.
func walk(reader *estargz.Reader, verifier estargz.TOCEntryVerifier, dir *estargz.TOCEntry, known map[*estargz.TOCEntry]bool) (files, pieces int, err error) {
	dir.ForeachChild(func(_ string, entry *estargz.TOCEntry) bool {
		if known[entry] {
			return true
		}
		known[entry] = true
		files++
		var more, seen int
		switch entry.Type {
		case "dir":
			more, seen, err = walk(reader, verifier, entry, known)
		case "reg":
			seen, err = content(reader, verifier, entry)
		}
		files, pieces = files+more, pieces+seen
		return err == nil
	})
	return files, pieces, err
}

// length of a piece; the last one ends where the file does.
func length(piece *estargz.TOCEntry, left int64) int64 {
	if piece.ChunkSize > 0 && piece.ChunkSize < left {
		return piece.ChunkSize
	}
	return left
}

func content(reader *estargz.Reader, verifier estargz.TOCEntryVerifier, entry *estargz.TOCEntry) (pieces int, err error) {
	file, err := reader.OpenFile(entry.Name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", entry.Name, err)
	}
	for offset := int64(0); offset < entry.Size; pieces++ {
		piece, ok := reader.ChunkEntryForOffset(entry.Name, offset)
		if !ok {
			return pieces, fmt.Errorf("%s: no piece at %d", entry.Name, offset)
		}
		check, err := verifier.Verifier(piece)
		if err != nil {
			return pieces, fmt.Errorf("%s at %d: %w", entry.Name, offset, err)
		}
		// At once: each read unpacks the piece from its beginning.
		bytes := make([]byte, length(piece, entry.Size-offset))
		if n, err := file.ReadAt(bytes, offset); n < len(bytes) {
			return pieces, fmt.Errorf("%s at %d: %d of %d bytes: %w", entry.Name, offset, n, len(bytes), err)
		}
		if _, err := check.Write(bytes); err != nil || !check.Verified() {
			return pieces, fmt.Errorf("%s at %d: not what the table says", entry.Name, offset)
		}
		offset += int64(len(bytes))
	}
	return pieces, nil
}
