package api

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/core"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// issuers serves IssuerService.
type issuers struct {
	issuancev1.UnimplementedIssuerServiceServer
	*API
}

// ListIssuers implements issuancev1.IssuerServiceServer.
func (s *issuers) ListIssuers(ctx context.Context, r *issuancev1.ListIssuersRequest) (*issuancev1.ListIssuersResponse, error) {
	p, scope, err := s.pageOf("issuers", s.deps.Core.IssuerSorting(), r)
	if err != nil {
		return nil, err
	}
	rows, total, err := s.deps.Core.ListIssuers(ctx, store.IssuerFilter{Type: r.GetType(), Page: p}, r.GetIncludeTotal())
	if err != nil {
		return nil, err
	}
	rows, token := cut(s.API, rows, p, scope, func(i store.Issuer) (page.Value, string) {
		if p.Order.Field() == "name" {
			return page.TextValue(i.Name), i.ID
		}
		return page.TimeValue(i.CreateTime), i.ID
	})
	out := &issuancev1.ListIssuersResponse{NextPageToken: token, TotalSize: total}
	for _, i := range rows {
		m, err := s.message(i)
		if err != nil {
			return nil, err
		}
		out.Issuers = append(out.Issuers, m)
	}
	return out, nil
}

// GetIssuer implements issuancev1.IssuerServiceServer.
func (s *issuers) GetIssuer(ctx context.Context, r *issuancev1.GetIssuerRequest) (*issuancev1.GetIssuerResponse, error) {
	i, err := s.deps.Core.GetIssuer(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	m, err := s.message(i)
	return &issuancev1.GetIssuerResponse{Issuer: m}, err
}

// CreateIssuer implements issuancev1.IssuerServiceServer.
func (s *issuers) CreateIssuer(ctx context.Context, r *issuancev1.CreateIssuerRequest) (*issuancev1.CreateIssuerResponse, error) {
	in := r.GetIssuer()
	var draft core.IssuerDraft
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.CreateIssuerResponse]{
		Request: r,
		Empty:   func() *issuancev1.CreateIssuerResponse { return &issuancev1.CreateIssuerResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			draft, err = s.deps.Core.DraftIssuer(ctx, core.NewIssuer{
				ID: in.GetId(), Name: in.GetName(), Type: in.GetType(), Settings: settings(in.GetConfig()), Enabled: in.Enabled == nil || in.GetEnabled(),
				PendingDeadline: in.GetPendingDeadline().AsDuration(),
			})
			return err
		},
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.CreateIssuerResponse, error) {
			i, err := s.deps.Core.CreateIssuer(ctx, tx, draft)
			if err != nil {
				return nil, err
			}
			m, err := s.message(i)
			return &issuancev1.CreateIssuerResponse{Issuer: m}, err
		},
	})
}

func settings(c *structpb.Struct) core.Settings {
	if c == nil {
		return core.Settings{}
	}
	return c.AsMap()
}

// UpdateIssuer implements issuancev1.IssuerServiceServer.
func (s *issuers) UpdateIssuer(ctx context.Context, r *issuancev1.UpdateIssuerRequest) (*issuancev1.UpdateIssuerResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	edit, err := issuerEdit(r)
	if err != nil {
		return nil, err
	}
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.UpdateIssuerResponse]{
		Request: r,
		Empty:   func() *issuancev1.UpdateIssuerResponse { return &issuancev1.UpdateIssuerResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			edit.Tested, err = s.deps.Core.TryEdit(ctx, r.GetIssuer().GetId(), edit)
			return err
		},
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.UpdateIssuerResponse, error) {
			i, err := s.deps.Core.UpdateIssuer(ctx, tx, r.GetIssuer().GetId(), expected, edit)
			if err != nil {
				return nil, err
			}
			m, err := s.message(i)
			return &issuancev1.UpdateIssuerResponse{Issuer: m}, err
		},
	})
}

// issuerEdit reads an update: the fields in the mask or, without one, those that are set. "config" replaces all settings,
// "config.<name>" one of them.
func issuerEdit(r *issuancev1.UpdateIssuerRequest) (core.IssuerEdit, error) {
	in := r.GetIssuer()
	paths := r.GetUpdateMask().GetPaths()
	if len(paths) == 0 {
		paths = issuerPaths(in)
	}
	e := core.IssuerEdit{Merge: core.Settings{}}
	given := settings(in.GetConfig())
	for _, p := range paths {
		name, inConfig := strings.CutPrefix(p, "config.")
		switch {
		case inConfig:
			name, _, _ = strings.Cut(name, ".")
			e.Merge[name] = given[name]
		case p == "config":
			e.Settings = &given
		case p == "name":
			e.Name = &in.Name
		case p == "enabled":
			enabled := in.GetEnabled()
			e.Enabled = &enabled
		case p == "pending_deadline":
			d := in.GetPendingDeadline().AsDuration()
			e.PendingDeadline = &d
		case p == "type":
			return core.IssuerEdit{}, errs.Field("type", "cannot be changed: make a new issuer")
		case isOutput(p):
		default:
			return core.IssuerEdit{}, errs.Field("update_mask", "an issuer has no field %q that could be changed", p)
		}
	}
	return e, nil
}

func issuerPaths(in *issuancev1.Issuer) []string {
	var paths []string
	for path, set := range map[string]bool{
		"name": in.GetName() != "", "config": in.GetConfig() != nil, "enabled": in.Enabled != nil, "type": in.GetType() != "",
		"pending_deadline": in.GetPendingDeadline() != nil,
	} {
		if set {
			paths = append(paths, path)
		}
	}
	return paths
}

// isOutput tells whether a field is one that clients get and send back unchanged.
func isOutput(path string) bool {
	root, _, _ := strings.Cut(path, ".")
	switch root {
	case "id", "capabilities", "status", "last_test_time", "last_error", "create_time", "update_time", "revision":
		return true
	default:
		return false
	}
}

// DeleteIssuer implements issuancev1.IssuerServiceServer.
func (s *issuers) DeleteIssuer(ctx context.Context, r *issuancev1.DeleteIssuerRequest) (*issuancev1.DeleteIssuerResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.DeleteIssuerResponse]{
		Request: r,
		Empty:   func() *issuancev1.DeleteIssuerResponse { return &issuancev1.DeleteIssuerResponse{} },
		Prepare: func(ctx context.Context) error { return s.deps.Core.CheckIssuerUnused(ctx, r.GetId()) },
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.DeleteIssuerResponse, error) {
			return &issuancev1.DeleteIssuerResponse{}, s.deps.Core.DeleteIssuer(ctx, tx, r.GetId(), expected)
		},
	})
}

// TestIssuer implements issuancev1.IssuerServiceServer.
func (s *issuers) TestIssuer(ctx context.Context, r *issuancev1.TestIssuerRequest) (*issuancev1.TestIssuerResponse, error) {
	i, err := s.deps.Core.TestIssuer(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	m, err := s.message(i)
	return &issuancev1.TestIssuerResponse{Issuer: m}, err
}

// message writes an issuer as the API shows it.
func (s *issuers) message(i store.Issuer) (*issuancev1.Issuer, error) {
	shown, err := core.ShownSettings(i)
	if err != nil {
		return nil, err
	}
	config, err := structpb.NewStruct(shown)
	if err != nil {
		return nil, fmt.Errorf("write settings of issuer %s: %w", i.ID, err)
	}
	caps := s.deps.Core.Capabilities(i)
	out := &issuancev1.Issuer{
		Id: i.ID, Name: i.Name, Type: i.Type, Config: config, Enabled: &i.Enabled,
		Status:       issuancev1.Issuer_Status(issuancev1.Issuer_Status_value[i.Status]),
		LastTestTime: core.Timestamp(i.LastTestTime), LastError: i.LastError,
		CreateTime: core.Timestamp(i.CreateTime), UpdateTime: core.Timestamp(i.UpdateTime), Revision: i.Revision,
		Capabilities: &issuancev1.IssuerCapabilities{Async: caps.Async, Revocation: caps.Revocation, Crl: caps.CRL, Ocsp: caps.OCSP, Ari: caps.ARI,
			Find: caps.Find, List: caps.List, Cancel: caps.Cancel, Reissue: caps.Reissue},
	}
	for _, reason := range caps.Reasons {
		out.Capabilities.RevocationReasons = append(out.Capabilities.RevocationReasons, reason.String())
	}
	if i.PendingDeadline > 0 {
		out.PendingDeadline = durationpb.New(i.PendingDeadline)
	}
	if caps.MaxValidity > 0 {
		out.Capabilities.MaxValidity = durationpb.New(caps.MaxValidity)
	}
	return out, nil
}
