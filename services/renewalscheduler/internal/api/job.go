package api

import (
	"context"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

type jobServer struct {
	renewalschedulerv1.UnimplementedJobServiceServer
	*Server
}

func jobSorting() (*page.Sorting, error) {
	return page.NewSorting(page.Column{SQL: "id", Kind: page.Text}, "create_time desc",
		page.Column{Field: "create_time", SQL: "create_time", Kind: page.Time},
		page.Column{Field: "deadline_time", SQL: "deadline_time", Kind: page.Time, NullAs: "'infinity'::timestamptz"})
}

// jobFilter reads the filters; enum values that do not exist are 400.
func jobFilter(req *renewalschedulerv1.ListJobsRequest) (store.JobFilter, error) {
	f := store.JobFilter{CertificateID: req.GetCertificateId(), AgentID: req.GetAgentId(), TargetID: req.GetTargetId()}
	var v errs.Violations
	for _, s := range req.GetStatus() {
		if _, ok := renewalschedulerv1.Job_Status_name[int32(s)]; !ok || s == renewalschedulerv1.Job_STATUS_UNSPECIFIED {
			v.Add("status", "%d is not a status of a job", s)
		}
		f.States = append(f.States, s.String())
	}
	for _, t := range req.GetType() {
		if _, ok := renewalschedulerv1.Job_Type_name[int32(t)]; !ok || t == renewalschedulerv1.Job_TYPE_UNSPECIFIED {
			v.Add("type", "%d is not a type of a job", t)
		}
		f.Types = append(f.Types, t.String())
	}
	return f, v.Err()
}

// ListJobs lists jobs.
func (s *jobServer) ListJobs(ctx context.Context, req *renewalschedulerv1.ListJobsRequest) (*renewalschedulerv1.ListJobsResponse, error) {
	filter, err := jobFilter(req)
	if err != nil {
		return nil, err
	}
	list, scope, err := s.page(s.jobSorting, store.Jobs, req)
	if err != nil {
		return nil, err
	}
	jobs, total, err := s.store.ListJobs(ctx, filter, list)
	if err != nil {
		return nil, err
	}
	jobs, more := page.Cut(jobs, list.Size)
	keys, err := s.store.KeysShown(ctx, jobs)
	if err != nil {
		return nil, err
	}
	res := &renewalschedulerv1.ListJobsResponse{TotalSize: size(list, total)}
	for _, j := range jobs {
		res.Jobs = append(res.Jobs, jobMessage(j, keys[j.ID]))
	}
	if more {
		last := jobs[len(jobs)-1]
		key := page.TimeValue(last.CreateTime)
		if list.Order.Field() == "deadline_time" {
			key = page.TimeValue(last.DeadlineTime)
		}
		res.NextPageToken = s.codec.Encode(scope, list.Order.Cursor(key, page.TextValue(last.ID)))
	}
	return res, nil
}

// GetJob answers one.
func (s *jobServer) GetJob(ctx context.Context, req *renewalschedulerv1.GetJobRequest) (*renewalschedulerv1.GetJobResponse, error) {
	j, err := s.core.Job(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	keys, err := s.store.Keys(ctx, j.ID)
	if err != nil {
		return nil, err
	}
	return &renewalschedulerv1.GetJobResponse{Job: jobMessage(j, keys)}, nil
}

// show makes the message of a job as it is in the transaction.
func show(ctx context.Context, tx *store.Tx, j *store.Job, err error) (*renewalschedulerv1.Job, error) {
	if err != nil {
		return nil, err
	}
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return nil, err
	}
	return jobMessage(j, keys), nil
}

// CancelJob ends an open job.
func (s *jobServer) CancelJob(ctx context.Context, req *renewalschedulerv1.CancelJobRequest) (*renewalschedulerv1.CancelJobResponse, error) {
	defer s.core.Kick()
	var seen *store.Job
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.CancelJobResponse]{
		Request: req, Empty: func() *renewalschedulerv1.CancelJobResponse { return &renewalschedulerv1.CancelJobResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			seen, err = s.core.Job(ctx, req.GetId())
			return err
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.CancelJobResponse, error) {
			j, err := s.core.CancelJob(ctx, tx, seen)
			m, err := show(ctx, tx, j, err)
			return &renewalschedulerv1.CancelJobResponse{Job: m}, err
		},
	})
}

// RetryJob opens fresh work for a job that did not succeed.
func (s *jobServer) RetryJob(ctx context.Context, req *renewalschedulerv1.RetryJobRequest) (*renewalschedulerv1.RetryJobResponse, error) {
	defer s.core.Kick()
	var seen *store.Job
	var rec *inventoryv1.CertificateRecord
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.RetryJobResponse]{
		Request: req, Empty: func() *renewalschedulerv1.RetryJobResponse { return &renewalschedulerv1.RetryJobResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			if seen, err = s.core.Job(ctx, req.GetId()); err != nil {
				return err
			}
			rec, err = s.core.Open(ctx, seen.CertificateID)
			return err
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.RetryJobResponse, error) {
			j, err := s.core.RetryJob(ctx, tx, seen, rec)
			m, err := show(ctx, tx, j, err)
			return &renewalschedulerv1.RetryJobResponse{Job: m}, err
		},
	})
}

// ApproveJob lets a waiting job run.
func (s *jobServer) ApproveJob(ctx context.Context, req *renewalschedulerv1.ApproveJobRequest) (*renewalschedulerv1.ApproveJobResponse, error) {
	defer s.core.Kick()
	var seen *store.Job
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.ApproveJobResponse]{
		Request: req, Empty: func() *renewalschedulerv1.ApproveJobResponse { return &renewalschedulerv1.ApproveJobResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			seen, err = s.core.Job(ctx, req.GetId())
			return err
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.ApproveJobResponse, error) {
			j, err := s.core.ApproveJob(ctx, tx, seen, req.GetComment())
			m, err := show(ctx, tx, j, err)
			return &renewalschedulerv1.ApproveJobResponse{Job: m}, err
		},
	})
}

// RejectJob ends a waiting job.
func (s *jobServer) RejectJob(ctx context.Context, req *renewalschedulerv1.RejectJobRequest) (*renewalschedulerv1.RejectJobResponse, error) {
	var seen *store.Job
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.RejectJobResponse]{
		Request: req, Empty: func() *renewalschedulerv1.RejectJobResponse { return &renewalschedulerv1.RejectJobResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			seen, err = s.core.Job(ctx, req.GetId())
			return err
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.RejectJobResponse, error) {
			j, err := s.core.RejectJob(ctx, tx, seen, req.GetComment())
			m, err := show(ctx, tx, j, err)
			return &renewalschedulerv1.RejectJobResponse{Job: m}, err
		},
	})
}

// RenewCertificate opens a RENEW job.
func (s *jobServer) RenewCertificate(ctx context.Context, req *renewalschedulerv1.RenewCertificateRequest) (*renewalschedulerv1.RenewCertificateResponse, error) {
	defer s.core.Kick()
	var rec *inventoryv1.CertificateRecord
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.RenewCertificateResponse]{
		Request: req, Empty: func() *renewalschedulerv1.RenewCertificateResponse {
			return &renewalschedulerv1.RenewCertificateResponse{}
		},
		Prepare: func(ctx context.Context) (err error) {
			rec, err = s.core.Open(ctx, req.GetCertificateId())
			return err
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.RenewCertificateResponse, error) {
			j, err := s.core.RenewCertificate(ctx, tx, rec, req.GetForce())
			m, err := show(ctx, tx, j, err)
			return &renewalschedulerv1.RenewCertificateResponse{Job: m}, err
		},
	})
}

// SubmitCsr has a certificate issued for a key that the caller keeps.
func (s *jobServer) SubmitCsr(ctx context.Context, req *renewalschedulerv1.SubmitCsrRequest) (*renewalschedulerv1.SubmitCsrResponse, error) {
	defer s.core.Kick()
	var rec *inventoryv1.CertificateRecord
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.SubmitCsrResponse]{
		Request: req, Empty: func() *renewalschedulerv1.SubmitCsrResponse { return &renewalschedulerv1.SubmitCsrResponse{} },
		Prepare: func(ctx context.Context) (err error) {
			if rec, err = s.core.Open(ctx, req.GetCertificateId()); err != nil {
				return err
			}
			return s.core.CheckCSR(ctx, rec, req.GetCsrPem())
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.SubmitCsrResponse, error) {
			j, err := s.core.SubmitCSR(ctx, tx, rec, req.GetCsrPem())
			m, err := show(ctx, tx, j, err)
			return &renewalschedulerv1.SubmitCsrResponse{Job: m}, err
		},
	})
}

// DeployCertificate opens a DEPLOY job per target.
func (s *jobServer) DeployCertificate(ctx context.Context, req *renewalschedulerv1.DeployCertificateRequest) (*renewalschedulerv1.DeployCertificateResponse, error) {
	defer s.core.Kick()
	var rec *inventoryv1.CertificateRecord
	return store.Do(ctx, s.store, store.Change[*renewalschedulerv1.DeployCertificateResponse]{
		Request: req, Empty: func() *renewalschedulerv1.DeployCertificateResponse {
			return &renewalschedulerv1.DeployCertificateResponse{}
		},
		Prepare: func(ctx context.Context) (err error) {
			rec, err = s.core.Open(ctx, req.GetCertificateId())
			return err
		},
		Apply: func(ctx context.Context, tx *store.Tx) (*renewalschedulerv1.DeployCertificateResponse, error) {
			jobs, err := s.core.DeployCertificate(ctx, tx, rec, req.GetTargetIds())
			if err != nil {
				return nil, err
			}
			res := &renewalschedulerv1.DeployCertificateResponse{}
			for _, j := range jobs {
				res.Jobs = append(res.Jobs, jobMessage(j, nil))
			}
			return res, nil
		},
	})
}

// ExplainCertificate says why a certificate is as it is.
func (s *jobServer) ExplainCertificate(ctx context.Context, req *renewalschedulerv1.ExplainCertificateRequest) (*renewalschedulerv1.ExplainCertificateResponse, error) {
	e, err := s.core.ExplainCertificate(ctx, req.GetCertificateId())
	if err != nil {
		return nil, err
	}
	for _, j := range []struct {
		job  *store.Job
		into **renewalschedulerv1.Job
	}{{e.OpenJob, &e.Response.OpenJob}, {e.LastJob, &e.Response.LastJob}} {
		if j.job == nil {
			continue
		}
		keys, err := s.store.Keys(ctx, j.job.ID)
		if err != nil {
			return nil, err
		}
		*j.into = jobMessage(j.job, keys)
	}
	return e.Response, nil
}
