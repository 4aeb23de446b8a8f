//! `containerd.services.images.v1`.

use gantry_api::convert::{descriptor_from_wire, descriptor_to_wire, labels_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::images::v1 as wire;
use gantry_api::pb::containerd::services::images::v1::images_server::Images;
use gantry_engine::images::Image;
use gantry_types::{Descriptor, Labels};
use tonic::{Request, Response, Status, async_trait};

use super::decode::{digest, filter, paths, required};
use super::{Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Images for Services {
    async fn get(&self, request: Request<wire::GetImageRequest>) -> Reply<wire::GetImageResponse> {
        let scope = scope::of(&request)?;
        let image = self.engine.images.get(&scope, &request.get_ref().name).await.map_err(status::of)?;
        Ok(Response::new(wire::GetImageResponse { image: Some(to_wire(image)) }))
    }

    async fn list(&self, request: Request<wire::ListImagesRequest>) -> Reply<wire::ListImagesResponse> {
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        let images = self.engine.images.list(&scope, &filter).await.map_err(status::of)?;
        Ok(Response::new(wire::ListImagesResponse { images: images.into_iter().map(to_wire).collect() }))
    }

    async fn create(&self, request: Request<wire::CreateImageRequest>) -> Reply<wire::CreateImageResponse> {
        let scope = scope::of(&request)?;
        let (name, target, labels) = parts(request.into_inner().image)?;
        let image = self.engine.images.create(&scope, &name, target, labels).await.map_err(status::of)?;
        Ok(Response::new(wire::CreateImageResponse { image: Some(to_wire(image)) }))
    }

    async fn update(&self, request: Request<wire::UpdateImageRequest>) -> Reply<wire::UpdateImageResponse> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let fields = paths(request.update_mask);
        let mut wanted = required(request.image, "image")?;
        if !fields.iter().any(|path| path.starts_with("target") || path.starts_with("annotations"))
            && !fields.is_empty()
        {
            // Not read then; keeps a client that sends labels alone from having to invent a digest.
            let now = self.engine.images.get(&scope, &wanted.name).await.map_err(status::of)?;
            wanted.target = Some(descriptor_to_wire(&now.target));
        }
        let (name, target, labels) = parts(Some(wanted))?;
        let image = self.engine.images.update(&scope, &name, target, labels, &fields).await.map_err(status::of)?;
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

fn parts(image: Option<wire::Image>) -> Result<(String, Descriptor, Labels), Status> {
    let image = required(image, "image")?;
    if image.name.is_empty() {
        return Err(Status::invalid_argument("Image.Name required"));
    }
    let target = descriptor_from_wire(required(image.target, "image.target")?).map_err(status::of)?;
    let labels = labels_from_wire(image.labels).map_err(status::of)?;
    Ok((image.name, target, labels))
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
