// What a program in Go believes that it is asked for: paths MUX FILES ROOT. The first port is net/http's ServeMux, as it is mostly
// used; the second its file server with the files of ROOT.
package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if isBelow(r.Host) {
			io.WriteString(w, "PROTECTED host")
		} else {
			io.WriteString(w, text)
		}
	}
}

// The mux knows exact hosts alone.
func isBelow(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.HasSuffix(strings.ToLower(host), ".adm.test")
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/admin", say("PROTECTED admin"))
	mux.HandleFunc("/admin/", say("PROTECTED admin"))
	mux.HandleFunc("/a/b", say("PROTECTED ab"))
	mux.HandleFunc("/", say("open"))
	mux.HandleFunc("admin.test/", say("PROTECTED host"))
	go func() { log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], mux)) }()
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[2], http.FileServer(http.Dir(os.Args[3]))))
}
