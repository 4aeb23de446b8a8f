//! `runtime.v1.ImageService`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use gantry_api::pb::runtime::v1 as wire;
use serde_json::json;
use tonic::{Request, Response};
use wire::image_service_server::ImageService;

use super::{Answers, Reply, chunks, reply};
use crate::images::Image;
use crate::{Cri, Error, Result};

/// The service of images.
#[derive(Clone)]
pub struct Images(pub Cri);

#[async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<wire::ListImagesRequest>) -> Reply<wire::ListImagesResponse> {
        let images = self.selected(request.into_inner().filter).await;
        reply(images.map(|images| wire::ListImagesResponse { images }))
    }

    type StreamImagesStream = Answers<wire::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<wire::StreamImagesRequest>,
    ) -> Reply<Answers<wire::StreamImagesResponse>> {
        let images = reply(self.selected(request.into_inner().filter).await)?.into_inner();
        chunks(images, |images| wire::StreamImagesResponse { images })
    }

    async fn image_status(&self, request: Request<wire::ImageStatusRequest>) -> Reply<wire::ImageStatusResponse> {
        let request = request.into_inner();
        reply(self.status(request).await)
    }

    async fn pull_image(&self, request: Request<wire::PullImageRequest>) -> Reply<wire::PullImageResponse> {
        let image_ref = self.0.pull_image(request.into_inner()).await;
        reply(image_ref.map(|image_ref| wire::PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<wire::RemoveImageRequest>) -> Reply<wire::RemoveImageResponse> {
        let name = request.into_inner().image.map(|spec| spec.image).unwrap_or_default();
        reply(self.0.remove_image(&name).await.map(|()| wire::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<wire::ImageFsInfoRequest>) -> Reply<wire::ImageFsInfoResponse> {
        self.0.image_fs_info().await.map(Response::new).map_err(gantry_api::status::of)
    }
}

impl Images {
    async fn selected(&self, filter: Option<wire::ImageFilter>) -> Result<Vec<wire::Image>> {
        let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image).filter(|image| !image.is_empty());
        let images = match wanted {
            Some(name) => self.0.image(&name).await?.into_iter().collect(),
            None => self.0.images().await?,
        };
        Ok(images.iter().map(Image::to_wire).collect())
    }

    async fn status(&self, request: wire::ImageStatusRequest) -> Result<wire::ImageStatusResponse> {
        let name = request.image.map(|spec| spec.image);
        let name = name.ok_or_else(|| Error::invalid("image", "must be set"))?;
        let Some(image) = self.0.image(&name).await? else { return Ok(wire::ImageStatusResponse::default()) };
        let mut info = BTreeMap::new();
        if request.verbose {
            let text = json!({ "chainID": chain_id(&image), "imageSpec": image.facts.config }).to_string();
            info.insert("info".to_owned(), text);
        }
        Ok(wire::ImageStatusResponse { image: Some(image.to_wire()), info })
    }
}

/// The name of the snapshot that an image unpacks to (image-spec, config.md, "Layer ChainID").
fn chain_id(image: &Image) -> String {
    let mut layers = image.facts.config.rootfs().diff_ids().iter();
    let first = layers.next().cloned().unwrap_or_default();
    layers.fold(first, |above, layer| gantry_types::Digest::of(format!("{above} {layer}").as_bytes()).to_string())
}
