//! The plugin's socket: HTTP/1.1, one request a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::driver::{Call, VolumeDriver};
use super::refusal::NoAnswer;

/// What Docker calls the protocol's version that this is.
pub const CONTENT: &str = "application/vnd.docker.plugins.v1.2+json";
/// Longest body of a request, bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest head of a request, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A client that has not sent its request by then is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// Serves `driver` on `listener` until the future is dropped, which breaks the connections that there are.
pub async fn serve(listener: UnixListener, driver: Arc<VolumeDriver>) {
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    // Too many open files, most likely: others will be closed.
                    tracing::warn!(%error, "Docker's plugin socket does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        let driver = Arc::clone(&driver);
        connections.spawn(async move {
            converse(stream, driver).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: UnixStream, driver: Arc<VolumeDriver>) {
    let service = service_fn(move |request| {
        let driver = Arc::clone(&driver);
        async move { answer(&driver, request).await }
    });
    // No keep-alive: on a connection that broke while it was idle, Docker would not know whether it was heard.
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(SEND_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of Docker's ended");
    }
}

/// Answers a request; an error breaks the connection.
async fn answer<B>(driver: &VolumeDriver, request: Request<B>) -> Result<Response<Full<Bytes>>, NoAnswer>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Some(call) = Call::at(request.uri().path()) else {
        return Ok(refuse(StatusCode::NOT_FOUND, "there is no such call"));
    };
    if request.method() != Method::POST {
        return Ok(refuse(StatusCode::METHOD_NOT_ALLOWED, "calls are made by POST"));
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(SEND_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let what = format!("a request has at most {BODY_BYTES_MAX} bytes");
            return Ok(refuse(StatusCode::PAYLOAD_TOO_LARGE, &what));
        }
        Ok(Err(error)) => return Err(NoAnswer(error.to_string())),
        Err(_) => return Err(NoAnswer("the request did not come in time".into())),
    };
    match driver.answer(call, &body).await {
        Ok(value) => Ok(response(StatusCode::OK, &value)),
        Err(error) => {
            tracing::warn!(?call, %error, "Docker gets no answer, so that it asks again");
            Err(error)
        }
    }
}

fn refuse(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    response(status, &json!({ "Err": why }))
}

fn response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    let content = hyper::header::HeaderValue::from_static(CONTENT);
    response.headers_mut().insert(CONTENT_TYPE, content);
    response
}
