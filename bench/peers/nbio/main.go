// Echo on nbio: nbio PORT
//
// One poller that never blocks; messages are handled in its turn, not in the library's pool of goroutines, which an
// echo would only hand its messages to.
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"
)

// The library's own bound is 10,000.
const connectionsMax = 1_000_000

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: nbio PORT")
	}
	logging.SetLevel(logging.LevelError)
	upgrader := websocket.NewUpgrader()
	upgrader.OnMessage(func(c *websocket.Conn, messageType websocket.MessageType, data []byte) {
		// How a connection ends is of no interest here: the load client knows.
		_ = c.WriteMessage(messageType, data)
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = upgrader.Upgrade(w, r, nil)
	})
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp",
		Addrs:                   []string{"127.0.0.1:" + os.Args[1]},
		Handler:                 mux,
		IOMod:                   nbhttp.IOModNonBlocking,
		NPoller:                 1,
		MaxLoad:                 connectionsMax,
		ReleaseWebsocketPayload: true,
		ServerExecutor:          func(f func()) { f() },
	})
	if err := engine.Start(); err != nil {
		log.Fatal(err)
	}
	<-make(chan struct{})
}
