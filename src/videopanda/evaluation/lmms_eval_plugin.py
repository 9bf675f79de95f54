"""The entry point `lmms_eval.models` of lmms-eval: a model called `videopanda`."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("videopanda", chat_class_path="videopanda.evaluation.lmms_eval_model.VideoPanda")
