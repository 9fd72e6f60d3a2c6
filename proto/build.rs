//! Compiles the .proto files with `protox`, so that no installed `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/bramble.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Chunk and log payloads are handed on without a copy.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
