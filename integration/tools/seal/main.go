// Seal encrypts and opens a layer as clients of containerd do: by ocicrypt, with imgcrypt's payload.
//
//	seal -key PUBLIC.pem DIGEST <layer >sealed   and the annotations of the sealed layer, as JSON, on standard error
//	seal -open -key PRIVATE.pem <sealed >layer   with the payload on descriptor 3: a stream processor
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"os"

	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/typeurl/v2"
	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func main() {
	log.SetFlags(0)
	opens := flag.Bool("open", false, "open a sealed layer")
	path := flag.String("key", "", "PEM file of the key")
	flag.Parse()
	key, err := os.ReadFile(*path)
	if err != nil {
		log.Fatal(err)
	}
	if *opens {
		err = open(key)
	} else {
		err = seal(key, digest.Digest(flag.Arg(0)))
	}
	if err != nil {
		log.Fatal(err)
	}
}

func seal(key []byte, of digest.Digest) error {
	keys, err := config.EncryptWithJwe([][]byte{key})
	if err != nil {
		return err
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: of}
	sealed, finish, err := ocicrypt.EncryptLayer(keys.EncryptConfig, os.Stdin, layer)
	if err != nil {
		return err
	}
	if _, err := io.Copy(os.Stdout, sealed); err != nil {
		return err
	}
	annotations, err := finish()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stderr).Encode(annotations)
}

func open(key []byte) error {
	told, err := io.ReadAll(os.NewFile(3, "payload"))
	if err != nil {
		return err
	}
	var wrapped anypb.Any
	if err := proto.Unmarshal(told, &wrapped); err != nil {
		return err
	}
	var payload imgcrypt.Payload
	if err := typeurl.UnmarshalTo(&wrapped, &payload); err != nil {
		return err
	}
	keys, err := config.DecryptWithPrivKeys([][]byte{key}, [][]byte{nil})
	if err != nil {
		return err
	}
	layer, _, err := ocicrypt.DecryptLayer(keys.DecryptConfig, os.Stdin, payload.Descriptor, false)
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, layer)
	return err
}
