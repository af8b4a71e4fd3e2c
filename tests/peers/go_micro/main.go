// A web service of Go Micro, of version 4 or 5, that registers in etcd or in Consul by Go Micro's own plugins, and leaves by SIGTERM.
//
// usage: service 4|5 etcd|consul REGISTRY NAME PORT
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/go-micro/plugins/v4/registry/consul"
	"github.com/go-micro/plugins/v4/registry/etcd"
	registry4 "go-micro.dev/v4/registry"
	web4 "go-micro.dev/v4/web"
	registry5 "go-micro.dev/v5/registry"
	web5 "go-micro.dev/v5/web"
)

const (
	ttl      = 5 * time.Second
	interval = 2 * time.Second
)

func main() {
	version, kind, place, name, address := os.Args[1], os.Args[2], os.Args[3], os.Args[4], "127.0.0.1:"+os.Args[5]
	where := []registry4.Option{registry4.Addrs(place)}
	plugin := etcd.NewRegistry(where...)
	if kind == "consul" {
		plugin = consul.NewRegistry(where...)
	}
	hello := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }
	var service interface{ Run() error }
	if version == "4" {
		it := web4.NewService(web4.Name(name), web4.Address(address), web4.Registry(plugin), web4.RegisterTTL(ttl),
			web4.RegisterInterval(interval), web4.Metadata(map[string]string{"zone": "a"}))
		it.HandleFunc("/", hello)
		service = it
	} else {
		it := web5.NewService(web5.Name(name), web5.Address(address), web5.Registry(&bridge{registry5.NewMemoryRegistry(), plugin}),
			web5.RegisterTTL(ttl), web5.RegisterInterval(interval), web5.Metadata(map[string]string{"zone": "a"}))
		it.HandleFunc("/", hello)
		service = it
	}
	if err := service.Run(); err != nil {
		log.Fatal(err)
	}
}

// What version 5 registers, by the plugin of version 4: those of version 5 have no release. The record is that of version 5, field by field.
type bridge struct {
	registry5.Registry
	plugin registry4.Registry
}

func (b *bridge) Register(service *registry5.Service, options ...registry5.RegisterOption) error {
	var said registry5.RegisterOptions
	for _, option := range options {
		option(&said)
	}
	return b.plugin.Register(as4(service), registry4.RegisterTTL(said.TTL))
}

func (b *bridge) Deregister(service *registry5.Service, _ ...registry5.DeregisterOption) error {
	return b.plugin.Deregister(as4(service))
}

func as4(service *registry5.Service) *registry4.Service {
	text, err := json.Marshal(service)
	if err != nil {
		log.Fatal(err)
	}
	same := new(registry4.Service)
	if err := json.Unmarshal(text, same); err != nil {
		log.Fatal(err)
	}
	return same
}
