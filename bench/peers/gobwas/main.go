// Echo on gobwas/ws: gobwas PORT
//
// One goroutine a connection, which reads through a buffer of 512 bytes and answers each frame with one write. The
// library is also used with a poller and a goroutine only while there is something to do: less memory, more CPU.
// nbio, beside this one, is a library of that kind.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"os"

	"github.com/gobwas/ws"
)

const (
	readBufferBytes = 512
	payloadBytesMax = 1 << 20
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: gobwas PORT")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer conn.Close()
			// How a connection ends is of no interest here: the load client knows.
			if _, err := ws.Upgrade(conn); err == nil {
				_ = echo(conn)
			}
		}()
	}
}

// echo gives back every frame as it came, fragments too, and answers pings, until the client closes.
func echo(conn net.Conn) error {
	reader := bufio.NewReaderSize(conn, readBufferBytes)
	state := ws.StateServerSide
	for {
		header, err := ws.ReadHeader(reader)
		if err != nil {
			return err
		}
		if err := ws.CheckHeader(header, state); err != nil {
			return err
		}
		if header.Length > payloadBytesMax {
			return errors.New("the payload is too long")
		}
		answer := header
		answer.Masked = false
		switch header.OpCode {
		case ws.OpPing:
			answer.OpCode = ws.OpPong
		case ws.OpText, ws.OpBinary, ws.OpContinuation:
			state = state.Clear(ws.StateFragmented)
			if !header.Fin {
				state = state.Set(ws.StateFragmented)
			}
		}
		// The payload is read to where it is sent from: one buffer a frame, one write.
		out := bytes.NewBuffer(make([]byte, 0, ws.HeaderSize(answer)+int(header.Length)))
		if err := ws.WriteHeader(out, answer); err != nil {
			return err
		}
		payload := out.AvailableBuffer()[:header.Length]
		if _, err := io.ReadFull(reader, payload); err != nil {
			return err
		}
		ws.Cipher(payload, header.Mask, 0)
		out.Write(payload)
		if header.OpCode == ws.OpPong {
			continue
		}
		if _, err := conn.Write(out.Bytes()); err != nil || header.OpCode == ws.OpClose {
			return err
		}
	}
}
