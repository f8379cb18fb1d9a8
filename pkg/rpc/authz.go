package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
)

// Rule says who may call a method.
type Rule struct {
	// Roles are those that may call. RoleNone among them lets in an anonymous caller whom the gateway forwards.
	Roles []rpcctx.Role
	// Public lets in everybody, without any credential.
	Public bool
}

// Allow makes a rule for roles.
func Allow(roles ...rpcctx.Role) Rule { return Rule{Roles: roles} }

// AuthzTable has the rule of each method by its full name, such as "/certctl.inventory.v1.CertificateService/Get".
// A method that is not in it is refused.
type AuthzTable map[string]Rule

// healthMethods are in every table: probes have no credentials.
func healthMethods() AuthzTable {
	return AuthzTable{
		"/grpc.health.v1.Health/Check": {Public: true},
		"/grpc.health.v1.Health/List":  {Public: true},
		"/grpc.health.v1.Health/Watch": {Public: true},
	}
}

// withHealth gives a copy with the methods of the health service, where the table does not have them.
func (t AuthzTable) withHealth() AuthzTable {
	all := healthMethods()
	maps.Copy(all, t)
	return all
}

// ServiceInfoProvider is what a *grpc.Server knows about the services registered on it.
type ServiceInfoProvider interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}

// CheckComplete tells what is wrong with the table: registered methods that are not in it, methods in it that a
// registered service does not have, and rules that let in nobody or name an unknown role. The methods of the
// health service need not be in it.
func (t AuthzTable) CheckComplete(server ServiceInfoProvider) error {
	table := t.withHealth()
	methods, services := registered(server)
	var problems []error
	for _, m := range slices.Sorted(maps.Keys(methods)) {
		if _, ok := table[m]; !ok {
			problems = append(problems, fmt.Errorf("%s: registered and not in the authorisation table", m))
		}
	}
	for _, m := range slices.Sorted(maps.Keys(t)) {
		if services[serviceOf(m)] && !methods[m] {
			problems = append(problems, fmt.Errorf("%s: in the authorisation table and not registered", m))
		}
		if err := t[m].check(); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", m, err))
		}
	}
	return errors.Join(problems...)
}

func registered(server ServiceInfoProvider) (methods, services map[string]bool) {
	methods, services = make(map[string]bool), make(map[string]bool)
	for service, info := range server.GetServiceInfo() {
		services[service] = true
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = true
		}
	}
	return methods, services
}

// serviceOf gives the service in a full method name.
func serviceOf(method string) string {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return service
}

func (r Rule) check() error {
	if r.Public == (len(r.Roles) > 0) {
		return errors.New("a rule is either public or names roles")
	}
	for _, role := range r.Roles {
		if role != rpcctx.RoleNone && !role.Valid() {
			return fmt.Errorf("unknown role %q", role)
		}
	}
	return nil
}

// around is the step that applies the table.
func (t AuthzTable) around(ctx context.Context, c call, next func(context.Context) error) error {
	rule, ok := t[c.method]
	if !ok {
		return errs.New(errs.PermissionDenied, "METHOD_NOT_ALLOWED", "nobody may call this method")
	}
	caller := rpcctx.CallerFrom(ctx)
	if rule.Public || slices.Contains(rule.Roles, caller.Role) {
		return next(ctx)
	}
	if caller.IsAnonymous() {
		return errs.New(errs.Unauthenticated, "CREDENTIAL_MISSING", "this method needs a credential")
	}
	return errs.New(errs.PermissionDenied, "ROLE_NOT_ALLOWED", "role %q may not call this method", caller.Role).
		With("role", string(caller.Role))
}
