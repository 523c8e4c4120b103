// csi ROOT NAME is a CSI driver's node part for the tests, with its registrar: CSI's own messages and grpc-go, so that it speaks as real ones do.
// ROOT is the kubelet's folder. A volume is a folder below ROOT/driver-NAME, bind-mounted where it is wanted; a raw one is a loop device
// on a file there (disk.go).
//
// It tells on standard output what it was asked, one call a line, and does as it is told on standard input:
//
//	refuse CALL [CODE]   that call fails from now on, as Internal or so
//	allow CALL           and from now on no more
//
// Environment: STAGE=1 stages volumes; MOUNT_GROUP=1 gives volumes to fsGroups itself; EXPAND=1 lets volumes grow; DISK=1 makes file systems
// on loop devices too.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"nodeagent.dev/e2e/plugins/registrar"
)

type driver struct {
	csi.UnimplementedNodeServer
	csi.UnimplementedIdentityServer

	name, volumes string

	lock    sync.Mutex
	refused map[string]codes.Code
	disks   map[string]*disk
}

func main() {
	root, name := os.Args[1], os.Args[2]
	d := &driver{name: name, volumes: filepath.Join(root, "driver-"+name), refused: map[string]codes.Code{}, disks: map[string]*disk{}}
	endpoint := filepath.Join(root, "plugins", name, "csi.sock")
	registrar.Must(os.MkdirAll(filepath.Dir(endpoint), 0o750))
	registrar.Must(os.MkdirAll(d.volumes, 0o755))
	registrar.Serve(endpoint, func(server *grpc.Server) {
		csi.RegisterNodeServer(server, d)
		csi.RegisterIdentityServer(server, d)
	})
	info := &registration.PluginInfo{Type: registration.CSIPlugin, Name: name, Endpoint: endpoint, SupportedVersions: []string{"1.0.0"}}
	socket := filepath.Join(root, "plugins_registry", name+"-reg.sock")
	registrar.Serve(socket, func(server *grpc.Server) {
		registration.RegisterRegistrationServer(server, &registrar.Registrar{Info: info})
	})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) >= 2 {
			code := codes.OK
			if words[0] == "refuse" {
				code = codes.Internal
			}
			if len(words) == 3 {
				registrar.Must(code.UnmarshalJSON([]byte(`"` + words[2] + `"`)))
			}
			d.lock.Lock()
			d.refused[words[1]] = code
			d.lock.Unlock()
		}
		registrar.Say("did %s", lines.Text())
	}
	os.Remove(socket)
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId: "id-of-node", MaxVolumesPerNode: 7,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{"topology." + d.name + "/zone": "z1"}},
	}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for variable, kind := range map[string]csi.NodeServiceCapability_RPC_Type{
		"STAGE": csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, "MOUNT_GROUP": csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		"EXPAND": csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
	} {
		if os.Getenv(variable) != "" {
			response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
				Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: kind}},
			})
		}
	}
	return response, nil
}

// May says that a call was made, and whether it goes well.
func (d *driver) may(call, format string, words ...any) error {
	registrar.Say(call+" "+format, words...)
	d.lock.Lock()
	defer d.lock.Unlock()
	// OK is no error.
	return status.Errorf(d.refused[call], "%s: the disk is on fire", call)
}

func (d *driver) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	return &csi.NodeStageVolumeResponse{}, d.may("stage", "%s %s", r.VolumeId, told(r.Secrets, r.VolumeContext, r.PublishContext, r.VolumeCapability))
}

func (d *driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	return &csi.NodeUnstageVolumeResponse{}, d.may("unstage", "%s", r.VolumeId)
}

func (d *driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := d.may("publish", "%s readonly=%v %s", r.VolumeId, r.Readonly, told(r.Secrets, r.VolumeContext, r.PublishContext, r.VolumeCapability)); err != nil {
		return nil, err
	}
	if os.Getenv("DISK") != "" || r.VolumeCapability.GetBlock() != nil {
		return &csi.NodePublishVolumeResponse{}, d.publishDisk(r)
	}
	volume := filepath.Join(d.volumes, r.VolumeId)
	if err := os.MkdirAll(volume, 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(r.TargetPath, 0o755); err != nil && !os.IsExist(err) {
		return nil, err
	}
	if mounted(r.TargetPath) {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	return &csi.NodePublishVolumeResponse{}, syscall.Mount(volume, r.TargetPath, "", syscall.MS_BIND, "")
}

func (d *driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := d.may("unpublish", "%s", r.VolumeId); err != nil {
		return nil, err
	}
	for mounted(r.TargetPath) {
		if err := syscall.Unmount(r.TargetPath, 0); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(r.TargetPath); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	d.closeDisk(r.VolumeId)
	if strings.HasPrefix(r.VolumeId, "csi-") {
		os.RemoveAll(filepath.Join(d.volumes, r.VolumeId))
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	size := r.CapacityRange.GetRequiredBytes()
	if err := d.may("expand", "%s size=%d %s", r.VolumeId, size, told(r.Secrets, nil, nil, r.VolumeCapability)); err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, d.expandDisk(r, size)
}

func mounted(path string) bool {
	text, _ := os.ReadFile("/proc/self/mounts")
	return strings.Contains(string(text), " "+path+" ")
}

// Told are the parts of a request that the tests look at.
func told(secrets, volume, attachment map[string]string, capability *csi.VolumeCapability) string {
	mount := capability.GetMount()
	return fmt.Sprintf("block=%v fs=%s flags=%s group=%s mode=%d secrets=%s context=%s attached=%s", capability.GetBlock() != nil, mount.GetFsType(),
		strings.Join(mount.GetMountFlags(), "+"), mount.GetVolumeMountGroup(), capability.GetAccessMode().GetMode(), list(secrets), list(volume), list(attachment))
}

func list(values map[string]string) string {
	var all []string
	for name, value := range values {
		all = append(all, strings.TrimPrefix(name, "csi.storage.k8s.io/")+":"+value)
	}
	sort.Strings(all)
	return "[" + strings.Join(all, ",") + "]"
}
