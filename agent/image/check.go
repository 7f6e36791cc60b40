package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"machine/agent/model"
	"machine/agent/oci"
	"machine/agent/state"
)

// A Found image is one on disk, as Check saw it.
type Found struct {
	ID     digest.Digest
	Names  []string      // familiar, sorted
	Layers []model.Layer // chain, DiffID and parent of each, lowest first
	Aside  bool          // it was set aside by the process that met it
	Err    error         // why it cannot be used, its layers apart

	bad state.Bad
}

// Check reads the records and configurations of the images in root and changes
// nothing, so a store may have them open meanwhile. Layers are the caller's to
// compare. The second result are records of names that cannot be used.
func Check(root string, get func(digest.Digest) ([]byte, error)) ([]Found, []state.Bad, error) {
	recs, badRecs, err := state.Check(filepath.Join(root, recordsDir), checkRecord)
	if err != nil {
		return nil, nil, fmt.Errorf("check images: %w", err)
	}
	refs, badRefs, err := state.Check(filepath.Join(root, namesDir), checkName)
	if err != nil {
		return nil, nil, fmt.Errorf("check images: %w", err)
	}
	var out []Found
	for _, r := range recs {
		out = append(out, Found{ID: r.ID})
	}
	for _, b := range badRecs {
		out = append(out, Found{ID: digest.NewDigestFromEncoded(digest.SHA256, b.ID), Aside: b.Aside, Err: b.Err, bad: b})
	}
	for i := range out {
		f := &out[i]
		for _, r := range refs {
			if n, err := oci.ParseRef(r.Ref); err == nil && r.ID == f.ID {
				f.Names = append(f.Names, oci.Familiar(n))
			}
		}
		slices.Sort(f.Names)
		if err := f.readConfig(get); err != nil {
			f.Err = errors.Join(f.Err, err)
		}
	}
	slices.SortFunc(out, func(a, b Found) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, badRefs, nil
}

func (f *Found) readConfig(get func(digest.Digest) ([]byte, error)) error {
	c, chains, err := readConfig(get, f.ID)
	var below digest.Digest
	for i, chain := range chains {
		f.Layers = append(f.Layers, model.Layer{Chain: chain, DiffID: c.RootFS.DiffIDs[i], Parent: below})
		below = chain
	}
	return err
}

// Mend has an image that was set aside used again. A record that cannot be
// read is made anew: what it said beside the id, where the image came from and
// from which other it was made, is lost. No
// store may have the records open.
func (f *Found) Mend() error {
	if len(f.Layers) == 0 && f.Err != nil {
		return fmt.Errorf("mend image %s: %w", f.ID, f.Err)
	}
	if f.bad.Err == nil {
		return f.bad.PutBack()
	}
	return f.bad.Replace(record{ID: f.ID, Made: time.Now().UTC()})
}

// Discard deletes the images and names in root that were set aside. No store
// may have root open.
func Discard(root string) error {
	for _, dir := range []string{recordsDir, namesDir} {
		if err := state.Discard(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	return nil
}
