//! Commands that ask the daemon of a store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::admin_client::AdminClient;
use bramble_proto::{CreateTokenRequest, DrainRequest, HealthRequest, RemoveNodeRequest, StatusRequest};
use hyper_util::rt::TokioIo;
use raftstore::disk::RealDisk;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Outcome, text};
use crate::node::server::short_socket_path;
use crate::node::status::Status;
use crate::node::store::{Identity, Layout};
use crate::node::transport::wire::WireError;

/// A healthy node answers within this time.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// Begins the answer when nobody could be asked.
pub(super) const NO_DAEMON: &str = "no daemon is running";
/// Anything else.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the daemon of `store`, from a program that does nothing else.
pub(super) fn ask<T>(
    store: &Path,
    limit: Duration,
    call: impl AsyncFnOnce(AdminClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    runtime.block_on(ask_within(store, limit, call))
}

/// Asks the daemon of `store`.
async fn ask_within<T>(
    store: &Path,
    limit: Duration,
    call: impl AsyncFnOnce(AdminClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, String> {
    let layout = Layout::new(Arc::new(RealDisk), store);
    Identity::load(&layout).map_err(text)?;
    let socket = layout.control_socket();
    let not_running = || {
        format!(
            "{NO_DAEMON} on the store {0}: start it with `bramble run --store {0}`",
            store.display()
        )
    };
    let work = async {
        // The address is not used: the connector opens the socket.
        let endpoint = Endpoint::from_static("http://daemon").connect_timeout(HEALTH_TIMEOUT);
        let connector = service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let (short, _dir) = short_socket_path(&socket)?;
                tokio::net::UnixStream::connect(short).await.map(TokioIo::new)
            }
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|_| not_running())?;
        call(AdminClient::new(channel))
            .await
            .map_err(|status| WireError::from(status).to_string())
    };
    let too_late = |_| {
        format!(
            "the daemon of {} does not answer within {} s",
            store.display(),
            limit.as_secs()
        )
    };
    tokio::time::timeout(limit, work).await.map_err(too_late)?
}

/// What the daemon says of itself, as JSON.
async fn status_json(mut client: AdminClient<Channel>) -> Result<String, tonic::Status> {
    Ok(client.status(StatusRequest {}).await?.into_inner().json)
}

fn fetch_status(store: &Path) -> Result<String, String> {
    ask(store, TIMEOUT, status_json)
}

fn parse_status(json: &str) -> Result<Status, String> {
    serde_json::from_str(json).map_err(|error| format!("the daemon is of another version: {error}"))
}

pub(super) fn parsed_status(store: &Path) -> Result<Status, String> {
    parse_status(&fetch_status(store)?)
}

/// As [`parsed_status`], within a runtime.
pub(super) async fn status_within(store: &Path) -> Result<Status, String> {
    parse_status(&ask_within(store, TIMEOUT, status_json).await?)
}

/// How many nodes vote.
pub(super) async fn count_voters(store: &Path) -> Result<u64, String> {
    Ok(status_within(store).await?.raft.voters)
}

pub(super) fn status(store: &Path, json: bool) -> Outcome {
    if json {
        println!("{}", fetch_status(store)?);
    } else {
        print!("{}", parsed_status(store)?.to_text());
    }
    Ok(())
}

pub(super) fn nodes(store: &Path) -> Outcome {
    print!("{}", parsed_status(store)?.nodes_table());
    Ok(())
}

pub(super) fn token(store: &Path, valid: Duration) -> Outcome {
    println!("{}", new_token(store, valid)?);
    Ok(())
}

/// As [`create_token`], from a program that does nothing else.
pub(super) fn new_token(store: &Path, valid: Duration) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    runtime.block_on(create_token(store, valid))
}

/// Makes a join token.
pub(super) async fn create_token(store: &Path, valid: Duration) -> Result<String, String> {
    let request = CreateTokenRequest {
        valid_s: valid.as_secs(),
    };
    let call =
        async |mut client: AdminClient<Channel>| Ok(client.create_token(request).await?.into_inner().token);
    ask_within(store, TIMEOUT, call).await
}

pub(super) fn remove(store: &Path, node: String, force: bool) -> Outcome {
    let request = RemoveNodeRequest { node, force };
    let message = ask(store, TIMEOUT, async |mut client| {
        Ok(client.remove_node(request).await?.into_inner().message)
    })?;
    println!("{message}");
    Ok(())
}

pub(super) fn health(store: &Path) -> Outcome {
    is_healthy(store)?;
    println!("healthy");
    Ok(())
}

/// As [`check_health`], from a program that does nothing else.
pub(super) fn is_healthy(store: &Path) -> Result<bool, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    runtime.block_on(check_health(store))
}

/// Begins or ends draining a node.
pub(super) fn set_draining(store: &Path, on: bool) -> Outcome {
    ask(store, TIMEOUT, async |mut client| {
        client.drain(DrainRequest { undo: !on }).await.map(drop)
    })
}

/// Between two looks of [`wait`].
const WAIT_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the node of `store` is healthy, without a limit: what needs the tree must not start before.
pub(super) fn wait(store: &Path) -> Outcome {
    if !Layout::new(Arc::new(RealDisk), store).identity().exists() {
        println!("there is no store at {}: nothing to wait for", store.display());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let mut told = String::new();
    runtime.block_on(async {
        while let Err(why) = check_health(store).await {
            if why != told {
                println!("waiting: {why}");
                told = why;
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    });
    println!("healthy");
    Ok(())
}

/// Whether a node that is healthy is draining; if it is not healthy, why.
pub(super) async fn check_health(store: &Path) -> Result<bool, String> {
    let call =
        async |mut client: AdminClient<Channel>| Ok(client.health(HealthRequest {}).await?.into_inner());
    let health = ask_within(store, HEALTH_TIMEOUT, call).await?;
    if health.healthy {
        Ok(health.draining)
    } else {
        Err(format!("not healthy: {}", health.reason))
    }
}
