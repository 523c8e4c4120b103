// Package registrar is what the plugins have in common: how they are served and register, and how they tell the tests what they are asked.
package registrar

import (
	"context"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Registrar answers who finds the plugin in plugins_registry.
type Registrar struct {
	registration.UnimplementedRegistrationServer

	Info *registration.PluginInfo
}

func (r *Registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return r.Info, nil
}

func (r *Registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	Say("status %v %s", status.PluginRegistered, status.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

// Serve serves what is registered, in place of a socket that an earlier life left.
func Serve(socket string, register func(*grpc.Server)) *grpc.Server {
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	Must(err)
	server := grpc.NewServer()
	register(server)
	go server.Serve(listener)
	return server
}

// Say tells the test, by a line.
func Say(format string, words ...any) {
	fmt.Printf(format+"\n", words...)
}

// Must ends the plugin if something failed.
func Must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
}
