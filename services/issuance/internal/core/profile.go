package core

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// DefaultProfileID is the profile of certificates that name none.
const DefaultProfileID = "prof-default"

// Bounds and defaults of profiles.
const (
	MinValidity            = 10 * time.Minute
	MaxValidity            = 10 * 366 * 24 * time.Hour
	DefaultValidity        = 90 * 24 * time.Hour
	DefaultApprovalTimeout = 7 * 24 * time.Hour
	minApprovalTimeout     = time.Minute
	maxApprovalTimeout     = 365 * 24 * time.Hour
	maxName                = 255
)

// ServerAuth is the extended key usage of profiles that name none.
const ServerAuth = "SERVER_AUTH"

func defaultKeyAlgorithms() []string {
	out := make([]string, 0, len(certcheck.KeyAlgorithms()))
	for _, a := range certcheck.KeyAlgorithms() {
		out = append(out, string(a))
	}
	return out
}

// CompleteProfile fills in what is not set.
func CompleteProfile(p *store.Profile) {
	if len(p.AllowedKeyAlgorithms) == 0 {
		p.AllowedKeyAlgorithms = defaultKeyAlgorithms()
	}
	if len(p.ExtendedKeyUsages) == 0 {
		p.ExtendedKeyUsages = []string{ServerAuth}
	}
	if p.MaxValidity == 0 {
		p.MaxValidity = DefaultValidity
	}
	if p.ApprovalTimeout == 0 {
		p.ApprovalTimeout = DefaultApprovalTimeout
	}
	p.AllowedKeyAlgorithms = unique(p.AllowedKeyAlgorithms)
	p.ExtendedKeyUsages = unique(p.ExtendedKeyUsages)
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func checkProfile(p store.Profile) error {
	var v errs.Violations
	checkName(&v, p.Name)
	if _, err := compilePatterns(p.AllowedSANPatterns); err != nil {
		merge(&v, err, func(f string) string { return f })
	}
	for i, a := range p.AllowedKeyAlgorithms {
		if !slices.Contains(defaultKeyAlgorithms(), a) {
			v.Add(fmt.Sprintf("allowed_key_algorithms[%d]", i), "is no key algorithm")
		}
	}
	for i, u := range p.ExtendedKeyUsages {
		if _, ok := extKeyUsage(u); !ok {
			v.Add(fmt.Sprintf("extended_key_usages[%d]", i), "is no extended key usage")
		}
	}
	if p.MaxValidity < MinValidity || p.MaxValidity > MaxValidity || p.MaxValidity%time.Second != 0 {
		v.Add("max_validity", "is %s: it must be whole seconds from 10 minutes to 10 years", p.MaxValidity)
	}
	if p.ApprovalTimeout < minApprovalTimeout || p.ApprovalTimeout > maxApprovalTimeout || p.ApprovalTimeout%time.Second != 0 {
		v.Add("approval_timeout", "is %s: it must be whole seconds from 1 minute to 1 year", p.ApprovalTimeout)
	}
	return v.Err()
}

func checkName(v *errs.Violations, name string) {
	switch {
	case name == "":
		v.Add("name", "is needed")
	case utf8.RuneCountInString(name) > maxName:
		v.Add("name", "is longer than %d characters", maxName)
	}
}

var ownID = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])*$`)

// chooseID takes the caller's id or makes one.
func chooseID(own, prefix string) (string, error) {
	if own == "" {
		return newID(prefix)
	}
	if len(own) < 3 || len(own) > 63 || !ownID.MatchString(own) {
		return "", errs.Field("id", "has to be 3 to 63 lower-case letters, digits and single hyphens between them")
	}
	return own, nil
}

// CreateProfile stores a new profile.
func (c *Core) CreateProfile(ctx context.Context, tx pgx.Tx, p store.Profile) (store.Profile, error) {
	id, err := chooseID(p.ID, "prof")
	if err != nil {
		return store.Profile{}, err
	}
	p.ID = id
	CompleteProfile(&p)
	if err := checkProfile(p); err != nil {
		return store.Profile{}, err
	}
	err = store.InsertProfile(ctx, tx, p)
	if errors.Is(err, store.ErrExists) {
		return store.Profile{}, errs.New(errs.AlreadyExists, "PROFILE_EXISTS", "profile %s exists already", p.ID)
	}
	if err != nil {
		return store.Profile{}, err
	}
	return c.profileChanged(ctx, tx, p.ID, "profile.created")
}

func (c *Core) profileChanged(ctx context.Context, tx pgx.Tx, id, action string) (store.Profile, error) {
	p, err := store.GetProfile(ctx, tx, id)
	if err != nil {
		return store.Profile{}, err
	}
	return p, c.recordProfile(ctx, tx, p, action)
}

func (c *Core) recordProfile(ctx context.Context, tx pgx.Tx, p store.Profile, action string) error {
	entry := auditlog.Entry{Action: action, ResourceType: "profile", ResourceID: p.ID, Data: map[string]any{
		"name": p.Name, "revision": p.Revision, "requires_approval": p.RequiresApproval, "allow_wildcards": p.AllowWildcards,
		"max_validity": p.MaxValidity.String(),
	}}
	if err := emit(ctx, tx, auditlog.Event(ctx, entry)); err != nil {
		return err
	}
	return revision.Bump(ctx, tx, collectionProfiles)
}

// UpdateProfile changes a profile: edit makes the change on what is stored.
func (c *Core) UpdateProfile(ctx context.Context, tx pgx.Tx, id string, expected int32, edit func(*store.Profile) error) (store.Profile, error) {
	p, err := c.lockProfile(ctx, tx, id, expected)
	if err != nil {
		return store.Profile{}, err
	}
	if err := edit(&p); err != nil {
		return store.Profile{}, err
	}
	CompleteProfile(&p)
	if err := checkProfile(p); err != nil {
		return store.Profile{}, err
	}
	if err := store.UpdateProfile(ctx, tx, p); err != nil {
		return store.Profile{}, err
	}
	return c.profileChanged(ctx, tx, id, "profile.updated")
}

func (c *Core) lockProfile(ctx context.Context, tx pgx.Tx, id string, expected int32) (store.Profile, error) {
	p, err := store.LockProfile(ctx, tx, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Profile{}, profileNotFound(id)
	}
	if err == nil && expected != 0 && expected != p.Revision {
		return store.Profile{}, mutation.Mismatch("profile "+id, expected, p.Revision)
	}
	return p, err
}

func profileNotFound(id string) error {
	return errs.New(errs.NotFound, "PROFILE_NOT_FOUND", "profile %s not found", id)
}

// CheckProfileUnused asks inventory whether certificates use a profile. It runs before the transaction of DeleteProfile.
func (c *Core) CheckProfileUnused(ctx context.Context, id string) error {
	if _, err := c.GetProfile(ctx, id); err != nil {
		return err
	}
	n, err := c.deps.References.CountProfile(ctx, id)
	if err != nil {
		return fmt.Errorf("count certificates of profile: %w", err)
	}
	if n > 0 {
		return inUse("PROFILE_IN_USE", "profile "+id, n, "certificates")
	}
	return nil
}

func inUse(reason, what string, n int, by string) error {
	return errs.New(errs.Conflict, reason, "%s is used by %d %s", what, n, by).With(by, fmt.Sprint(n))
}

// DeleteProfile removes a profile that no open order uses.
func (c *Core) DeleteProfile(ctx context.Context, tx pgx.Tx, id string, expected int32) error {
	p, err := c.lockProfile(ctx, tx, id, expected)
	if err != nil {
		return err
	}
	n, err := store.CountOpenOrdersOfProfile(ctx, tx, id)
	if err != nil {
		return err
	}
	if n > 0 {
		return inUse("PROFILE_IN_USE", "profile "+id, n, "orders")
	}
	if err := store.DeleteProfile(ctx, tx, id); err != nil {
		return err
	}
	return c.recordProfile(ctx, tx, p, "profile.deleted")
}

// GetProfile reads one.
func (c *Core) GetProfile(ctx context.Context, id string) (store.Profile, error) {
	p, err := store.GetProfile(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Profile{}, profileNotFound(id)
	}
	return p, err
}

// GetProfiles reads those that exist.
func (c *Core) GetProfiles(ctx context.Context, ids []string) ([]store.Profile, error) {
	return store.GetProfiles(ctx, c.deps.DB.Pool, ids)
}

// ProfileSorting is what profiles may be ordered by.
func (c *Core) ProfileSorting() *page.Sorting { return c.profiles }

// ListProfiles reads one page more one row, and the number of all if asked.
func (c *Core) ListProfiles(ctx context.Context, p store.Page, total bool) ([]store.Profile, *int32, error) {
	rows, err := store.ListProfiles(ctx, c.deps.DB.Pool, p)
	if err != nil || !total {
		return rows, nil, err
	}
	n, err := store.CountProfiles(ctx, c.deps.DB.Pool)
	return rows, &n, err
}
