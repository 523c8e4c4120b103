// device FOLDER RESOURCE ID[=ill]... is a device plugin for the tests: Kubernetes' own generated code and grpc-go, so that it speaks as
// real ones do. FOLDER is the kubelet's device-plugins. Each device is /dev/zero, as /dev/ID in the container.
//
// It tells on standard output what it was asked, one call a line, and does as it is told on standard input:
//
//	ID well|ill   the device is so from now on
//	refuse        Allocate fails from now on
//	prefer ID     GetPreferredAllocation answers so
//
// Environment: NODE=PATH is what all devices are; REGISTRY=FOLDER registers there (plugins_registry) instead; PRE_START=1 wants to be asked before each start.
package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	device "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"nodeagent.dev/e2e/plugins/registrar"
)

type plugin struct {
	device.UnimplementedDevicePluginServer

	resource string

	lock      sync.Mutex
	health    map[string]string
	refuses   bool
	preferred []string
	listeners []chan struct{}
}

func main() {
	folder, resource := os.Args[1], os.Args[2]
	p := &plugin{resource: resource, health: map[string]string{}}
	for _, word := range os.Args[3:] {
		id, ill, _ := strings.Cut(word, "=")
		p.health[id] = device.Healthy
		if ill == "ill" {
			p.health[id] = device.Unhealthy
		}
	}
	name := strings.NewReplacer("/", "-", ".", "-").Replace(resource) + ".sock"
	registry := os.Getenv("REGISTRY")
	if registry != "" {
		folder = registry
	}
	socket := filepath.Join(folder, name)
	info := &registration.PluginInfo{
		Type: registration.DevicePlugin, Name: resource, Endpoint: socket, SupportedVersions: []string{device.Version},
	}
	server := registrar.Serve(socket, func(server *grpc.Server) {
		device.RegisterDevicePluginServer(server, p)
		registration.RegisterRegistrationServer(server, &registrar.Registrar{Info: info})
	})
	if registry == "" {
		p.register(filepath.Join(folder, "kubelet.sock"), name)
	}
	p.obey()
	server.Stop()
}

// As most plugins do: by the socket's path, which goes into :authority.
func (p *plugin) register(kubelet, name string) {
	dial := func(ctx context.Context, path string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	connection, err := grpc.NewClient("passthrough:///"+kubelet, grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	registrar.Must(err)
	defer connection.Close()
	version := os.Getenv("VERSION")
	if version == "" {
		version = device.Version
	}
	_, err = device.NewRegistrationClient(connection).Register(context.Background(), &device.RegisterRequest{
		Version: version, Endpoint: name, ResourceName: p.resource,
	})
	if err != nil {
		registrar.Say("refused %v", err)
		return
	}
	registrar.Say("registered")
}

func (p *plugin) obey() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		p.lock.Lock()
		switch {
		case len(words) == 2 && words[0] == "prefer":
			p.preferred = strings.Split(words[1], ",")
		case len(words) == 2:
			p.health[words[0]] = map[string]string{"well": device.Healthy, "ill": device.Unhealthy}[words[1]]
			for _, listener := range p.listeners {
				listener <- struct{}{}
			}
		case len(words) == 1 && words[0] == "refuse":
			p.refuses = true
		}
		p.lock.Unlock()
		registrar.Say("did %s", lines.Text())
	}
}

func (p *plugin) GetDevicePluginOptions(context.Context, *device.Empty) (*device.DevicePluginOptions, error) {
	return &device.DevicePluginOptions{
		PreStartRequired: os.Getenv("PRE_START") != "", GetPreferredAllocationAvailable: true,
	}, nil
}

func (p *plugin) list() *device.ListAndWatchResponse {
	p.lock.Lock()
	defer p.lock.Unlock()
	response := &device.ListAndWatchResponse{}
	for id, health := range p.health {
		response.Devices = append(response.Devices, &device.Device{ID: id, Health: health})
	}
	return response
}

func (p *plugin) ListAndWatch(_ *device.Empty, stream grpc.ServerStreamingServer[device.ListAndWatchResponse]) error {
	changes := make(chan struct{}, 16)
	p.lock.Lock()
	p.listeners = append(p.listeners, changes)
	p.lock.Unlock()
	for {
		if err := stream.Send(p.list()); err != nil {
			return err
		}
		select {
		case <-changes:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (p *plugin) GetPreferredAllocation(_ context.Context, request *device.PreferredAllocationRequest) (*device.PreferredAllocationResponse, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	one := request.ContainerRequests[0]
	registrar.Say("prefer %s of %s", sorted(one.MustIncludeDeviceIDs), sorted(one.AvailableDeviceIDs))
	return &device.PreferredAllocationResponse{
		ContainerResponses: []*device.ContainerPreferredAllocationResponse{{DeviceIDs: p.preferred}},
	}, nil
}

func (p *plugin) Allocate(_ context.Context, request *device.AllocateRequest) (*device.AllocateResponse, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.refuses {
		return nil, errors.New("the device is on fire")
	}
	response := &device.AllocateResponse{}
	for _, one := range request.ContainerRequests {
		ids := sorted(one.DevicesIds)
		registrar.Say("allocate %s", ids)
		container := &device.ContainerAllocateResponse{
			Envs:        map[string]string{"DEVICES": ids, "OWN": "the plugin's"},
			Mounts:      []*device.Mount{{ContainerPath: "/opt/device", HostPath: "/etc/hostname", ReadOnly: true}},
			Annotations: map[string]string{"e2e.nodeagent.dev/devices": ids},
		}
		for _, id := range one.DevicesIds {
			container.Devices = append(container.Devices,
				&device.DeviceSpec{ContainerPath: "/dev/" + id, HostPath: node(), Permissions: "rw"})
			if os.Getenv("CDI") != "" {
				container.CdiDevices = append(container.CdiDevices, &device.CDIDevice{Name: os.Getenv("CDI") + "=" + id})
			}
		}
		response.ContainerResponses = append(response.ContainerResponses, container)
	}
	return response, nil
}

func (p *plugin) PreStartContainer(_ context.Context, request *device.PreStartContainerRequest) (*device.PreStartContainerResponse, error) {
	registrar.Say("prestart %s", sorted(request.DevicesIds))
	return &device.PreStartContainerResponse{}, nil
}

func sorted(ids []string) string {
	sort.Strings(ids)
	return strings.Join(ids, ",")
}

func node() string {
	if path := os.Getenv("NODE"); path != "" {
		return path
	}
	return "/dev/zero"
}
