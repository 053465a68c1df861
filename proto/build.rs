//! Compiles the two `.proto` files without protoc: protox parses, prost writes the Rust, pbjson the JSON.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=client.proto");
    println!("cargo:rerun-if-changed=link.proto");
    let descriptors = protox::compile(["client.proto", "link.proto"], ["."])?;
    let encoded = descriptors.encode_to_vec();
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        // A frame kind or field of a later release is passed over, as it is in the binary form.
        .ignore_unknown_fields()
        .build(&[".hawser.client.v1"])?;
    Ok(())
}
