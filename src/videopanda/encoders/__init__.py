"""Frozen teachers for distillation with a common interface: frames in, patch features out.

    teacher = open_teacher("LanguageBind_Video_merge", max_cells=16)
    features = teacher({"teacher_pixels": pixels_BTCHW})        # (B, T, G, G, D)

A teacher is not a module, so no `state_dict` contains it; its weights are read at the first call.
"""
