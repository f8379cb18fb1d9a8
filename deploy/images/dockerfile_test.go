package images

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/stretchr/testify/require"
)

// instruction is a line of a Dockerfile: its name, its flags and its words.
type instruction struct {
	name  string
	flags []string
	words []string
}

// stages are the instructions of a program's Dockerfile, by stage.
func stages(t *testing.T, p Program) [][]instruction {
	t.Helper()
	f, err := os.Open(p.Name + ".Dockerfile")
	require.NoError(t, err)
	defer f.Close()
	result, err := parser.Parse(f)
	require.NoError(t, err)
	require.Empty(t, result.Warnings)
	var list [][]instruction
	for _, n := range result.AST.Children {
		i := instruction{name: strings.ToUpper(n.Value), flags: n.Flags}
		for w := n.Next; w != nil; w = w.Next {
			i.words = append(i.words, w.Value)
		}
		if i.name == "FROM" {
			list = append(list, nil)
		}
		list[len(list)-1] = append(list[len(list)-1], i)
	}
	return list
}

// all are the words of all instructions of a name, in one line each.
func all(stage []instruction, name string) []string {
	var list []string
	for _, i := range stage {
		if i.name == name {
			list = append(list, strings.Join(append(i.flags, i.words...), " "))
		}
	}
	return list
}

// pairs are what LABEL or ENV sets, without quotes. The parser gives name, value and separator in turn.
func pairs(stage []instruction, name string) map[string]string {
	set := make(map[string]string)
	for _, i := range stage {
		if i.name != name {
			continue
		}
		for n := 0; n+1 < len(i.words); n += 3 {
			set[i.words[n]] = strings.Trim(i.words[n+1], `"`)
		}
	}
	return set
}

func TestTheDockerfilesMakeWhatTheProgramMakes(t *testing.T) {
	t.Parallel()
	for _, p := range Programs() {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			list := stages(t, p)
			require.Len(t, list, 2)
			build, final := list[0], list[1]

			require.Equal(t, []string{"scratch"}, all(final, "FROM"))
			require.Empty(t, all(final, "RUN"), "there is no shell that could")
			require.Equal(t, []string{"--from=build /rootfs/ /"}, all(final, "COPY"))
			require.Equal(t, []string{user}, all(final, "USER"))
			require.Equal(t, []string{"/"}, all(final, "WORKDIR"))
			require.Equal(t, []string{"/usr/local/bin/" + p.Name}, all(final, "ENTRYPOINT"))
			var env []string
			for name, value := range pairs(final, "ENV") {
				env = append(env, name+"="+value)
			}
			require.ElementsMatch(t, p.Env, env)

			want := labels(Config{Version: "$VERSION", Commit: "$COMMIT"}, p)
			want["org.opencontainers.image.created"] = "$CREATED"
			require.Equal(t, want, pairs(final, "LABEL"))

			environment := pairs(build, "ENV")
			for _, e := range buildEnv() {
				name, value, _ := strings.Cut(e, "=")
				require.Contains(t, environment, name)
				require.Equal(t, value, environment[name], name)
			}
			require.Equal(t, "/src/"+p.Module, all(build, "WORKDIR")[0])
			compile := strings.Join(strings.Fields(all(build, "RUN")[0]), " ")
			require.Contains(t, compile, "GOARCH=$TARGETARCH go build -trimpath -buildvcs=false")
			require.Contains(t, compile, `-ldflags "`+ldflags("$VERSION", "$COMMIT")+`"`)
			require.Contains(t, compile, "-o /out/"+p.Name+" "+p.Package)
		})
	}
}

func TestTheDockerfilesInstallTheSameRootFileSystem(t *testing.T) {
	t.Parallel()
	for _, p := range Programs() {
		run := all(stages(t, p)[0], "RUN")[1]
		want := []string{
			"install -D -m 0755 /out/" + p.Name + " /rootfs/usr/local/bin/" + p.Name,
			"install -D -m 0644 -t /rootfs/etc /src/deploy/images/rootfs/etc/passwd /src/deploy/images/rootfs/etc/group",
			"install -d -m 1777 /rootfs/tmp",
			"install -d -m 0755 /rootfs/var/lib",
			"install -d -m 0700 -o 65532 -g 65532 /rootfs" + p.DataDir,
		}
		var got []string
		for _, command := range strings.Split(run, "&&") {
			got = append(got, strings.Join(strings.Fields(command), " "))
		}
		require.Equal(t, want, got)
	}
}

func TestTheMakefileBuildsWithTheGoAndTheFlagsOfTheDockerfiles(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	require.NoError(t, err)
	toolchain := regexp.MustCompile(`(?m)^GO_OF_IMAGES \?= go(\S+)$`).FindSubmatch(b)
	require.NotNil(t, toolchain)
	require.Contains(t, string(b), "LDFLAGS     := "+ldflags("$(VERSION)", "$(COMMIT)")+"\n")
	for _, p := range Programs() {
		require.Equal(t, "--platform=$BUILDPLATFORM golang:"+string(toolchain[1])+" AS build", all(stages(t, p)[0], "FROM")[0])
	}
}

func TestTheBuildGetsEveryModuleThatItNeeds(t *testing.T) {
	t.Parallel()
	replaced := regexp.MustCompile(`(?m)^\s*github\.com/certctl/certctl/(\S+) v0\.0\.0`)
	for _, p := range Programs() {
		mod, err := os.ReadFile(filepath.Join(root, p.Module, "go.mod"))
		require.NoError(t, err)
		ignore, err := os.ReadFile(p.Name + ".Dockerfile.dockerignore")
		require.NoError(t, err)
		lines := strings.Split(string(ignore), "\n")
		require.Contains(t, lines, "!"+p.Module)
		require.Contains(t, lines, "!deploy/images/rootfs")
		needed := replaced.FindAllStringSubmatch(string(mod), -1)
		require.NotEmpty(t, needed)
		for _, m := range needed {
			top, _, _ := strings.Cut(m[1], "/")
			require.Contains(t, lines, "!"+top)
		}
	}
}
