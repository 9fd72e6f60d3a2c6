//! What the command line asks of its own node, over the Unix socket in the store.

use std::sync::Arc;

use bramble_proto::admin_server::Admin;
use bramble_proto::{
    CreateTokenRequest, CreateTokenResponse, DrainRequest, DrainResponse, HealthRequest, HealthResponse,
    RemoveNodeRequest, RemoveNodeResponse, StatusRequest, StatusResponse, VolumeRequest, VolumeResponse,
};
use tonic::{Request, Response, Status};

use super::volumes::VolumesSlot;
use crate::node::inspect::Inspector;
use crate::node::transport::wire::WireError;

/// The Admin service. Whoever may open the socket, which is root alone, may ask for everything.
pub struct AdminService {
    inspector: Arc<Inspector>,
    volumes: Arc<VolumesSlot>,
}

impl AdminService {
    /// Answers for this node.
    #[must_use]
    pub fn new(inspector: Arc<Inspector>, volumes: Arc<VolumesSlot>) -> Self {
        Self { inspector, volumes }
    }
}

/// Longest validity of a join token, seconds.
const TOKEN_VALID_S_MAX: u64 = 30 * 24 * 3600;

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.inspector.status().await;
        let json =
            serde_json::to_string_pretty(&status).map_err(|error| WireError::NotNow(error.to_string()))?;
        Ok(Response::new(StatusResponse { json }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let valid_s = request.into_inner().valid_s;
        if !(1..=TOKEN_VALID_S_MAX).contains(&valid_s) {
            return Err(WireError::Refused("a token can be valid for one second to 30 days".into()).into());
        }
        let token = self.inspector.create_token(valid_s).await?;
        Ok(Response::new(CreateTokenResponse {
            token: token.to_string(),
            valid_s,
        }))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        Ok(Response::new(
            self.inspector.remove_node(request.into_inner()).await?,
        ))
    }

    async fn volume(&self, request: Request<VolumeRequest>) -> Result<Response<VolumeResponse>, Status> {
        let action = request.into_inner().action;
        let action = action.ok_or_else(|| WireError::Malformed("a request for volumes is empty".into()))?;
        let json = self.volumes.run(action).await?;
        Ok(Response::new(VolumeResponse { json }))
    }

    async fn health(&self, _request: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        let reason = self.inspector.health().await.err().unwrap_or_default();
        Ok(Response::new(HealthResponse {
            healthy: reason.is_empty(),
            reason,
            draining: self.inspector.drain().is_on(),
        }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let (drain, on) = (Arc::clone(self.inspector.drain()), !request.into_inner().undo);
        let set = tokio::task::spawn_blocking(move || drain.set(on)).await;
        let set = set.map_err(|error| WireError::NotNow(error.to_string()))?;
        set.map_err(|error| WireError::Refused(error.to_string()))?;
        Ok(Response::new(DrainResponse {}))
    }
}
