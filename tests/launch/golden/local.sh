nld train tiny_stage1_ar train.iterations=20 'data.blend=0.7:a b,0.3:c'
