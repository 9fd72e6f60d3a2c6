//! The wire protocol between Bramble nodes: messages and gRPC services, generated from `proto/bramble.proto`.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("bramble.v1");
