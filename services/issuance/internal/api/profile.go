package api

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/issuance/internal/core"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// profiles serves ProfileService.
type profiles struct {
	issuancev1.UnimplementedProfileServiceServer
	*API
}

// ListProfiles implements issuancev1.ProfileServiceServer.
func (s *profiles) ListProfiles(ctx context.Context, r *issuancev1.ListProfilesRequest) (*issuancev1.ListProfilesResponse, error) {
	p, scope, err := s.pageOf("profiles", s.deps.Core.ProfileSorting(), r)
	if err != nil {
		return nil, err
	}
	rows, total, err := s.deps.Core.ListProfiles(ctx, p, r.GetIncludeTotal())
	if err != nil {
		return nil, err
	}
	rows, token := cut(s.API, rows, p, scope, func(f store.Profile) (page.Value, string) {
		if p.Order.Field() == "name" {
			return page.TextValue(f.Name), f.ID
		}
		return page.TimeValue(f.CreateTime), f.ID
	})
	out := &issuancev1.ListProfilesResponse{NextPageToken: token, TotalSize: total}
	for _, f := range rows {
		out.Profiles = append(out.Profiles, profileMessage(f))
	}
	return out, nil
}

// GetProfile implements issuancev1.ProfileServiceServer.
func (s *profiles) GetProfile(ctx context.Context, r *issuancev1.GetProfileRequest) (*issuancev1.GetProfileResponse, error) {
	p, err := s.deps.Core.GetProfile(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &issuancev1.GetProfileResponse{Profile: profileMessage(p)}, nil
}

// CreateProfile implements issuancev1.ProfileServiceServer.
func (s *profiles) CreateProfile(ctx context.Context, r *issuancev1.CreateProfileRequest) (*issuancev1.CreateProfileResponse, error) {
	p := store.Profile{ID: r.GetProfile().GetId()}
	if err := editProfile(&p, r.GetProfile(), profilePaths()); err != nil {
		return nil, err
	}
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.CreateProfileResponse]{
		Request: r,
		Empty:   func() *issuancev1.CreateProfileResponse { return &issuancev1.CreateProfileResponse{} },
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.CreateProfileResponse, error) {
			stored, err := s.deps.Core.CreateProfile(ctx, tx, p)
			if err != nil {
				return nil, err
			}
			return &issuancev1.CreateProfileResponse{Profile: profileMessage(stored)}, nil
		},
	})
}

// UpdateProfile implements issuancev1.ProfileServiceServer.
func (s *profiles) UpdateProfile(ctx context.Context, r *issuancev1.UpdateProfileRequest) (*issuancev1.UpdateProfileResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	paths := r.GetUpdateMask().GetPaths()
	if len(paths) == 0 {
		paths = setPaths(r.GetProfile())
	}
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.UpdateProfileResponse]{
		Request: r,
		Empty:   func() *issuancev1.UpdateProfileResponse { return &issuancev1.UpdateProfileResponse{} },
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.UpdateProfileResponse, error) {
			stored, err := s.deps.Core.UpdateProfile(ctx, tx, r.GetProfile().GetId(), expected, func(p *store.Profile) error {
				return editProfile(p, r.GetProfile(), paths)
			})
			if err != nil {
				return nil, err
			}
			return &issuancev1.UpdateProfileResponse{Profile: profileMessage(stored)}, nil
		},
	})
}

// DeleteProfile implements issuancev1.ProfileServiceServer.
func (s *profiles) DeleteProfile(ctx context.Context, r *issuancev1.DeleteProfileRequest) (*issuancev1.DeleteProfileResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.DeleteProfileResponse]{
		Request: r,
		Empty:   func() *issuancev1.DeleteProfileResponse { return &issuancev1.DeleteProfileResponse{} },
		Prepare: func(ctx context.Context) error { return s.deps.Core.CheckProfileUnused(ctx, r.GetId()) },
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.DeleteProfileResponse, error) {
			return &issuancev1.DeleteProfileResponse{}, s.deps.Core.DeleteProfile(ctx, tx, r.GetId(), expected)
		},
	})
}

func profilePaths() []string {
	return []string{
		"name", "description", "allowed_san_patterns", "allow_wildcards", "allowed_key_algorithms", "extended_key_usages",
		"max_validity", "requires_approval", "approval_timeout",
	}
}

// setPaths gives the fields of a message that are set.
func setPaths(in *issuancev1.Profile) []string {
	var paths []string
	m := in.ProtoReflect()
	for _, path := range profilePaths() {
		if m.Has(m.Descriptor().Fields().ByTextName(path)) {
			paths = append(paths, path)
		}
	}
	return paths
}

// editProfile writes the named fields of a message into a profile.
func editProfile(p *store.Profile, in *issuancev1.Profile, paths []string) error {
	var v errs.Violations
	for _, path := range paths {
		switch path {
		case "name":
			p.Name = in.GetName()
		case "description":
			p.Description = in.GetDescription()
		case "allowed_san_patterns":
			p.AllowedSANPatterns = in.GetAllowedSanPatterns()
		case "allow_wildcards":
			p.AllowWildcards = in.GetAllowWildcards()
		case "allowed_key_algorithms":
			p.AllowedKeyAlgorithms = keyAlgorithms(&v, in.GetAllowedKeyAlgorithms())
		case "extended_key_usages":
			p.ExtendedKeyUsages = usages(&v, in.GetExtendedKeyUsages())
		case "max_validity":
			p.MaxValidity = duration(&v, path, in.GetMaxValidity())
		case "requires_approval":
			p.RequiresApproval = in.GetRequiresApproval()
		case "approval_timeout":
			p.ApprovalTimeout = duration(&v, path, in.GetApprovalTimeout())
		case "id", "create_time", "update_time", "revision":
		default:
			v.Add("update_mask", "a profile has no field %q that could be changed", path)
		}
	}
	return v.Err()
}

// duration reads a duration; unset is zero, for the default.
func duration(v *errs.Violations, field string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() <= 0 {
		v.Add(field, "is no positive duration")
		return 0
	}
	return d.AsDuration()
}

func keyAlgorithms(v *errs.Violations, in []typev1.KeyAlgorithm) []string {
	var out []string
	for i, a := range in {
		name := keyAlgorithm(a)
		if name == "" {
			v.Add(fmt.Sprintf("allowed_key_algorithms[%d]", i), "is no key algorithm")
			continue
		}
		out = append(out, name)
	}
	return out
}

// keyAlgorithm gives the name of an algorithm; "" for unspecified and unknown ones.
func keyAlgorithm(a typev1.KeyAlgorithm) string {
	if a == typev1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		return ""
	}
	return typev1.KeyAlgorithm_name[int32(a)]
}

func usages(v *errs.Violations, in []issuancev1.Profile_ExtendedKeyUsage) []string {
	var out []string
	for i, u := range in {
		name, ok := issuancev1.Profile_ExtendedKeyUsage_name[int32(u)]
		if !ok || u == issuancev1.Profile_EXTENDED_KEY_USAGE_UNSPECIFIED {
			v.Add(fmt.Sprintf("extended_key_usages[%d]", i), "is no extended key usage")
			continue
		}
		out = append(out, name)
	}
	return out
}

// profileMessage writes a profile as the API shows it.
func profileMessage(p store.Profile) *issuancev1.Profile {
	out := &issuancev1.Profile{
		Id: p.ID, Name: p.Name, Description: p.Description, AllowedSanPatterns: p.AllowedSANPatterns, AllowWildcards: p.AllowWildcards,
		MaxValidity: durationpb.New(p.MaxValidity), RequiresApproval: p.RequiresApproval, ApprovalTimeout: durationpb.New(p.ApprovalTimeout),
		CreateTime: core.Timestamp(p.CreateTime), UpdateTime: core.Timestamp(p.UpdateTime), Revision: p.Revision,
	}
	for _, a := range p.AllowedKeyAlgorithms {
		out.AllowedKeyAlgorithms = append(out.AllowedKeyAlgorithms, typev1.KeyAlgorithm(typev1.KeyAlgorithm_value[a]))
	}
	for _, u := range p.ExtendedKeyUsages {
		out.ExtendedKeyUsages = append(out.ExtendedKeyUsages, issuancev1.Profile_ExtendedKeyUsage(issuancev1.Profile_ExtendedKeyUsage_value[u]))
	}
	return out
}
