package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// Small enough for any machine, large enough for ext4.
const firstSize = 16 << 20

// A disk is a file with a loop device on it. The kernel lets go of the device when the last who has it open does, so with this program at the
// latest.
type disk struct {
	image, device *os.File
}

// Open makes the disk of a volume, or finds it. Its image stays, as a real disk does.
func (d *driver) open(volume string) (*disk, error) {
	d.lock.Lock()
	defer d.lock.Unlock()
	if known := d.disks[volume]; known != nil {
		return known, nil
	}
	image, err := os.OpenFile(filepath.Join(d.volumes, volume+".img"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if found, err := image.Stat(); err != nil || found.Size() == 0 {
		if err := errors.Join(err, image.Truncate(firstSize)); err != nil {
			return nil, err
		}
	}
	device, err := loop(image)
	if err != nil {
		return nil, err
	}
	d.disks[volume] = &disk{image, device}
	return d.disks[volume], nil
}

// Loop takes a free device; others take some at the same time.
func loop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		wanted := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &wanted)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set %s up: %w", device.Name(), err)
		}
	}
}

// PublishDisk shows a volume's disk as a device, or the file system on it.
func (d *driver) publishDisk(r *csi.NodePublishVolumeRequest) error {
	disk, err := d.open(r.VolumeId)
	if err != nil || mounted(r.TargetPath) {
		return err
	}
	if r.VolumeCapability.GetBlock() != nil {
		file, err := os.OpenFile(r.TargetPath, os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		file.Close()
		return syscall.Mount(disk.device.Name(), r.TargetPath, "", syscall.MS_BIND, "")
	}
	if err := os.Mkdir(r.TargetPath, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	if err := syscall.Mount(disk.device.Name(), r.TargetPath, "ext4", 0, ""); err == nil {
		return nil
	}
	if err := run("mkfs.ext4", "-q", disk.device.Name()); err != nil {
		return err
	}
	return syscall.Mount(disk.device.Name(), r.TargetPath, "ext4", 0, "")
}

// ExpandDisk makes a disk larger, and the file system on it, if there is one. That is taken away meanwhile: to let ext4 grow as it is mounted
// takes more rights than root of a container has.
func (d *driver) expandDisk(r *csi.NodeExpandVolumeRequest, size int64) error {
	d.lock.Lock()
	disk := d.disks[r.VolumeId]
	d.lock.Unlock()
	if disk == nil {
		return nil
	}
	if err := disk.image.Truncate(size); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(disk.device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return err
	}
	if os.Getenv("DISK") == "" {
		return nil
	}
	if err := syscall.Unmount(r.VolumePath, 0); err != nil {
		return err
	}
	err := run("e2fsck", "-fp", disk.device.Name())
	return errors.Join(err, run("resize2fs", disk.device.Name()), syscall.Mount(disk.device.Name(), r.VolumePath, "ext4", 0, ""))
}

// CloseDisk lets go of a volume's device.
func (d *driver) closeDisk(volume string) {
	d.lock.Lock()
	defer d.lock.Unlock()
	if disk := d.disks[volume]; disk != nil {
		disk.device.Close()
		disk.image.Close()
		delete(d.disks, volume)
	}
}

func run(name string, words ...string) error {
	if said, err := exec.Command(name, words...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, said)
	}
	return nil
}
