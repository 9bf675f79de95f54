"""Official Video-Panda and EVE checkpoints to ordinary folders of this project."""
