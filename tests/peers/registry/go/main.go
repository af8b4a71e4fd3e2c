// A service that registers by Consul's client for Go, as users have it: with a heartbeat, a query that waits for changes, maintenance by
// SIGUSR1 and SIGUSR2, and an orderly end by SIGTERM. It prints what it sees.
//
// usage: service REGISTRY NAME ID PORT
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	consul "github.com/hashicorp/consul/api"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	registry, name, id := os.Args[1], os.Args[2], os.Args[3]
	port, err := strconv.Atoi(os.Args[4])
	must(err)
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	must(err)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, id) }))

	settings := consul.DefaultConfig()
	settings.Address = registry
	client, err := consul.NewClient(settings)
	must(err)
	must(client.Agent().ServiceRegister(&consul.AgentServiceRegistration{
		ID: id, Name: name, Address: "127.0.0.1", Port: port,
		Tags: []string{"v1", "go"}, Meta: map[string]string{"language": "go"},
		Check: &consul.AgentServiceCheck{TTL: "3s", Status: consul.HealthPassing, DeregisterCriticalServiceAfter: "1m"},
	}))
	fmt.Println("registered")
	go heartbeats(client, id)
	go watch(client, name)
	look(client, name, id)

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM)
	for it := range signals {
		switch it {
		case syscall.SIGUSR1:
			must(client.Agent().EnableServiceMaintenance(id, "a repair"))
			fmt.Println("in maintenance")
		case syscall.SIGUSR2:
			must(client.Agent().DisableServiceMaintenance(id))
			fmt.Println("out of maintenance")
		default:
			must(client.Agent().ServiceDeregister(id))
			fmt.Println("deregistered")
			os.Exit(0)
		}
	}
}

func heartbeats(client *consul.Client, id string) {
	for {
		if err := client.Agent().UpdateTTL("service:"+id, "alive", consul.HealthPassing); err != nil {
			fmt.Println("heartbeat:", err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// Prints how many instances pass whenever that changes.
func watch(client *consul.Client, name string) {
	var index uint64
	seen := -1
	for {
		entries, meta, err := client.Health().Service(name, "go", true, &consul.QueryOptions{WaitIndex: index, WaitTime: time.Minute})
		if err != nil {
			fmt.Println("query:", err)
			time.Sleep(200 * time.Millisecond)
			index = 0
			continue
		}
		if index != 0 && meta.LastIndex < index {
			fmt.Println("the index went backwards:", index, meta.LastIndex)
		}
		if index = meta.LastIndex; len(entries) != seen {
			seen = len(entries)
			fmt.Println("passing:", seen)
		}
	}
}

// What a client may ask beside that, once.
func look(client *consul.Client, name, id string) {
	self, err := client.Agent().Self()
	must(err)
	fmt.Println("node:", self["Config"]["NodeName"])
	services, err := client.Agent().Services()
	must(err)
	fmt.Println("of the agent:", services[id].Service, services[id].Port, services[id].Meta["language"], services[id].Weights.Passing)
	service, _, err := client.Agent().Service(id, nil)
	must(err)
	fmt.Println("one of the agent:", service.ID, service.Address)
	checks, err := client.Agent().ChecksWithFilter("")
	must(err)
	fmt.Println("check:", checks["service:"+id].Status, checks["service:"+id].Type)
	status, info, err := client.Agent().AgentHealthServiceByID(id)
	must(err)
	fmt.Println("health:", status, info.Service.ID)
	catalog, _, err := client.Catalog().Services(nil)
	must(err)
	fmt.Println("in the catalog:", catalog[name])
	nodes, _, err := client.Catalog().Service(name, "v1", nil)
	must(err)
	fmt.Println("service:", nodes[0].ServiceID, nodes[0].ServicePort, nodes[0].Checks.AggregatedStatus())
	leader, err := client.Status().Leader()
	must(err)
	fmt.Println("leader:", leader)
	pair, _, err := client.KV().Get("not/there", nil)
	fmt.Println("key:", pair, err)
	fmt.Println("unknown:", client.Agent().ServiceDeregister("not-there") != nil)
}
