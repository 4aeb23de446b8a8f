//! `containerd.services.images.v1`.

use std::time::UNIX_EPOCH;

use gantry_api::convert::{descriptor_from_wire, descriptor_to_wire, labels_from_wire, time_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::images::v1 as wire;
use gantry_api::pb::containerd::services::images::v1::images_server::Images;
use gantry_engine::images::Image;
use prost_types::Timestamp;
use tonic::{Request, Response, Status, async_trait};

use super::decode::{digest, paths, required};
use super::{Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Images for Services {
    async fn get(&self, request: Request<wire::GetImageRequest>) -> Reply<wire::GetImageResponse> {
        let scope = scope::of(&request)?;
        let image = self.engine.images.get(&scope, &request.get_ref().name).await.map_err(status::of)?;
        Ok(Response::new(wire::GetImageResponse { image: Some(to_wire(image)) }))
    }

    async fn list(&self, _: Request<wire::ListImagesRequest>) -> Reply<wire::ListImagesResponse> {
        Err(super::stands_before())
    }

    async fn create(&self, request: Request<wire::CreateImageRequest>) -> Reply<wire::CreateImageResponse> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let wanted = from_wire(request.image, request.source_date_epoch)?;
        let image = self.engine.images.create(&scope, wanted).await.map_err(status::of)?;
        Ok(Response::new(wire::CreateImageResponse { image: Some(to_wire(image)) }))
    }

    async fn update(&self, request: Request<wire::UpdateImageRequest>) -> Reply<wire::UpdateImageResponse> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let fields = paths(request.update_mask);
        let mut wanted = required(request.image, "image")?;
        if !fields.is_empty()
            && !fields.iter().any(|path| path.starts_with("target") || path.starts_with("annotations"))
        {
            // Not read then; keeps a client that sends labels alone from having to invent a digest.
            let now = self.engine.images.get(&scope, &wanted.name).await.map_err(status::of)?;
            wanted.target = Some(descriptor_to_wire(&now.target));
        }
        let wanted = from_wire(Some(wanted), request.source_date_epoch)?;
        let image = self.engine.images.update(&scope, wanted, &fields).await.map_err(status::of)?;
        Ok(Response::new(wire::UpdateImageResponse { image: Some(to_wire(image)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteImageRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let target = request.target.map(|target| digest(&target.digest)).transpose()?;
        let images = &self.engine.images;
        images.delete(&scope, &request.name, target.as_ref(), request.sync).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}

fn from_wire(image: Option<wire::Image>, epoch: Option<Timestamp>) -> Result<Image, Status> {
    let image = required(image, "image")?;
    if image.name.is_empty() {
        return Err(Status::invalid_argument("Image.Name required"));
    }
    let epoch = epoch.map(time_from_wire).transpose().map_err(status::of)?.unwrap_or(UNIX_EPOCH);
    Ok(Image {
        name: image.name,
        target: descriptor_from_wire(required(image.target, "image.target")?).map_err(status::of)?,
        labels: labels_from_wire(image.labels).map_err(status::of)?,
        created: epoch,
        updated: epoch,
    })
}

fn to_wire(image: Image) -> wire::Image {
    wire::Image {
        name: image.name,
        labels: image.labels,
        target: Some(descriptor_to_wire(&image.target)),
        created_at: Some(time_to_wire(image.created)),
        updated_at: Some(time_to_wire(image.updated)),
    }
}
